"""The readers of what strangers write, and what each may make of any input: sound facts, or a `MergekitError`.

A reader is called with a file of its own folder. It returns whether it accepted the input, and asserts that what it
accepted is possible: every extent inside its file, every size the one that dtype and shape have.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint import Stored, open_checkpoint, open_pickle, read_header
from mergekit.checkpoint.tensors import span_of
from mergekit.errors import MergekitError

SEEDS, REGRESSIONS = (Path(__file__).with_name(name) for name in ("seeds", "regressions"))
_NAMES = ("model.layers.0.self_attn.q_proj", "a" * 500 + "!", "model." * 40, "0" * 120)


@dataclass(frozen=True)
class Reader:
    """A reader and the form of what it reads.

    Parameters:
        judge: reads a file; see above.
        file: what the file is called.
        form: "bytes", "json", "yaml", "safetensors" (JSON behind its length), or "zip" (a pickle inside).
        beside: seeds that lie in the same folder, by the names that they have there.
    """

    judge: Callable[[Path], bool]
    file: str
    form: str
    beside: tuple[tuple[str, str], ...] = ()

    def prepare(self, folder: Path) -> Path:
        """Put everything but the input into a folder; returns where the input goes."""
        for name, seed in self.beside:
            shutil.copyfile(SEEDS / seed, folder / name)
        return folder / self.file


def check_stored(stored: Stored, root: Path) -> None:
    """A tensor lies inside of its file, the file in the folder, and the tensor is as large as it says."""
    spec, extent = stored.spec, stored.extent
    assert extent.file.resolve().is_relative_to(root.resolve()), f"{extent.file} is outside"
    assert 0 <= extent.start <= extent.stop <= extent.file.stat().st_size, f"{extent} is not inside of its file"
    if stored.blocks is not None:
        kind = stored.blocks.kind
        assert extent.nbytes * kind.entries == spec.count * kind.nbytes, f"{spec} has {extent.nbytes} bytes"
    elif stored.strides is not None:
        span = span_of(spec.shape, stored.strides)
        assert extent.nbytes * 8 == span * spec.dtype.bits, f"{spec} spans {extent.nbytes} bytes"
    else:
        assert extent.nbytes == spec.nbytes, f"{spec} has {extent.nbytes} bytes"


def _refusing(read: Callable[[Path], None]) -> Callable[[Path], bool]:
    def judge(file: Path) -> bool:
        try:
            read(file)
        except MergekitError as error:
            if not str(error):
                raise AssertionError("an error that says nothing") from error
            return False
        return True

    return judge


def _header(file: Path) -> None:
    header = read_header(file)
    for stored in header.tensors:
        check_stored(stored, file.parent)
    assert header.nbytes + sum(stored.extent.nbytes for stored in header.tensors) == file.stat().st_size


def _pickle(file: Path) -> None:
    for stored in open_pickle(file).tensors:
        check_stored(stored, file.parent)


def _gguf(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    for stored in checkpoint.tensors.values():
        check_stored(stored, file.parent)
    assert all(isinstance(checkpoint.text(name), str) for name in checkpoint.texts)


def _folder(file: Path) -> None:
    for stored in open_checkpoint(file.parent).tensors.values():
        check_stored(stored, file.parent)


def _recipe(file: Path) -> None:
    from mergekit.plan.planner import VOCABULARY
    from mergekit.raw.language import read_raw
    from mergekit.recipe import decoded, read_recipe

    text = decoded(file.read_bytes(), "m.yml")
    both = read_recipe(text, file="m.yml", vocabulary=VOCABULARY), read_raw(text, file="m.yml")
    for recipe, findings in both:
        assert recipe is not None or findings.errors, "neither a recipe nor an error"
    min((findings for _, findings in both), key=lambda findings: len(findings.errors)).raise_errors()


def _adapter(file: Path) -> None:
    from mergekit.adapters.config import read_lora_config

    config = read_lora_config(file)
    for name in _NAMES:
        assert config.rank_of(name) >= 1
        config.scale_of(name)
        assert all(row >= 0 for row in config.tokens_of(name) or ())


def _tokenizer(file: Path) -> None:
    from mergekit.tokenizer.alignment import align
    from mergekit.tokenizer.tables import read_table

    table = read_table(open_checkpoint(file.parent))
    assert table is not None
    assert len(table.ids) + len(table.holes) == table.size
    assert list(table.ids.values()) == sorted(set(table.ids.values()))
    align([table], [None])


def _plan(file: Path) -> None:
    from mergekit.plan import PlanOptions, plan_merge

    plan = plan_merge(
        f"merge_method: passthrough\nmodels: [{{model: {file.parent}}}]\ndtype: float32\n",
        options=PlanOptions(workers=1),
    )
    assert plan.write_bytes == sum(task.out.nbytes for task in plan.tasks)


def _report(file: Path) -> None:
    from mergekit.errors import VerificationError
    from mergekit.origin import read_origin
    from mergekit.report.verify import verify_folder

    found = verify_folder(file.parent)
    assert found.tensors == 3
    for change in read_origin(file.parent).changes():
        assert change.what
    if not found.ok:
        raise VerificationError(found.problems[0].what)


_SAFETENSORS, _CONFIG = ("model.safetensors", "config/model.safetensors"), ("config.json", "config/config.json")

READERS = {
    "header": Reader(_refusing(_header), "model.safetensors", "safetensors"),
    "pickle": Reader(_refusing(_pickle), "pytorch_model.bin", "zip"),
    "gguf": Reader(_refusing(_gguf), "model.gguf", "bytes"),
    "recipe": Reader(_refusing(_recipe), "m.yml", "yaml"),
    "adapter": Reader(_refusing(_adapter), "adapter_config.json", "json"),
    "tokenizer": Reader(_refusing(_tokenizer), "tokenizer.json", "json", (_SAFETENSORS, _CONFIG)),
    "index": Reader(
        _refusing(_folder),
        "model.safetensors.index.json",
        "json",
        (
            ("model-00001-of-00002.safetensors", "index/model-00001-of-00002.safetensors"),
            ("model-00002-of-00002.safetensors", "index/model-00002-of-00002.safetensors"),
            _CONFIG,
        ),
    ),
    "config": Reader(_refusing(_plan), "config.json", "json", (_SAFETENSORS,)),
    "model": Reader(_refusing(_plan), "model.safetensors", "safetensors", (_CONFIG,)),
    "report": Reader(
        _refusing(_report),
        "merge_report.json",
        "json",
        (
            ("model.safetensors", "report/model.safetensors"),
            ("mergekit_config.yml", "report/mergekit_config.yml"),
            _CONFIG,
        ),
    ),
}
"""Every reader by its name; its seeds are in the folder of that name, all files that begin with `seed`."""


def seeds_of(name: str) -> list[Path]:
    """The sound inputs of a reader."""
    return sorted((SEEDS / name).glob("seed*"))


def regressions_of(name: str) -> list[Path]:
    """Inputs on which a reader once failed."""
    return sorted((REGRESSIONS / name).glob("*"))
