"""The files beside the weights of a model, by their names: tokenizer, templates, generation settings, code, licence."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import PurePosixPath

WEIGHTS = (
    "*.safetensors *.bin *.pt *.pth *.ckpt *.gguf *.ggml *.h5 *.msgpack *.onnx *.onnx_data *.tflite *.mlmodel *.npz "
    "*.pkl *.index.json *.safetensors.* *.bin.*"
)
TRAINING = (
    "optimizer* scheduler* rng_state* trainer_state.json training_args* scaler* zero_to_fp32.py latest "
    "events.out.tfevents.* all_results.json train_results.json eval_results.json adapter_*"
)
REWRITTEN = "config.json README.md mergekit_config.yml mergekit_config.yaml merge_report.json"
FOLDERS = ".* checkpoint-* global_step* runs original onnx openvino coreml wandb logs"
TOKENIZER = (
    "tokenizer* special_tokens_map.json added_tokens.json vocab.* merges.txt chat_template.* *.tiktoken "
    "sentencepiece.* spiece.model spm.model tekken.json"
)


def is_like(name: str, patterns: str) -> bool:
    """Whether a name fits one of several patterns.

    Parameters:
        name: of a file or folder.
        patterns: as in a shell, separated by spaces.
    """
    return any(fnmatch(name, pattern) for pattern in patterns.split())


def is_companion(name: str) -> bool:
    """Whether a file of a model folder goes along with the weights as it is.

    Parameters:
        name: relative to the folder, with ``/``.

    Example:
        >>> [is_companion(name) for name in ("tokenizer.json", "onnx/config.json", "model.safetensors", "config.json")]
        [True, False, False, False]
    """
    path = PurePosixPath(name)
    denied = is_like(path.name, f"{WEIGHTS} {TRAINING} .*") or is_like(name, REWRITTEN)
    return not denied and not any(is_like(folder, FOLDERS) for folder in path.parts[:-1])
