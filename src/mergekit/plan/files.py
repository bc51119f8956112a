"""The donor's other files: everything that is not weights or training state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

_WEIGHTS = (
    "*.safetensors *.bin *.pt *.pth *.ckpt *.gguf *.ggml *.h5 *.msgpack *.onnx *.onnx_data *.tflite *.mlmodel *.npz "
    "*.pkl *.index.json *.safetensors.* *.bin.*"
)
_TRAINING = (
    "optimizer* scheduler* rng_state* trainer_state.json training_args* scaler* zero_to_fp32.py latest "
    "events.out.tfevents.* all_results.json train_results.json eval_results.json adapter_*"
)
_REWRITTEN = "config.json README.md mergekit_config.yml mergekit_config.yaml merge_report.json"
_FOLDERS = (".*", "checkpoint-*", "global_step*", "runs", "original", "onnx", "openvino", "coreml", "wandb", "logs")
_TOKENIZER = (
    "tokenizer* special_tokens_map.json added_tokens.json vocab.* merges.txt chat_template.* *.tiktoken "
    "sentencepiece.* spiece.model spm.model"
)


def _is_like(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns.split())


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            another_merge = (entry / "merge_report.json").exists()
            if not (entry.is_symlink() or another_merge or any(fnmatch(entry.name, pattern) for pattern in _FOLDERS)):
                yield from _files(entry)
        elif entry.is_file():
            yield entry


def copied_files(root: Path, tokenizer: bool = True) -> Mapping[str, Path]:
    """The files of a model folder that a merge takes over as they are, by their names in the output.

    Parameters:
        root: the donor's folder.
        tokenizer: whether tokenizer and chat template are among them.
    """
    denied = f"{_WEIGHTS} {_TRAINING} .*"
    chosen = {}
    for file in _files(root):
        name = file.relative_to(root).as_posix()
        left_out = _is_like(file.name, denied) or _is_like(name, _REWRITTEN)
        if not left_out and (tokenizer or not _is_like(file.name, _TOKENIZER)):
            chosen[name] = file
    return chosen
