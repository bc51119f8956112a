"""The table of architectures, and what it makes of the names of tensors."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mergekit.checkpoint.gguf.container import Container
from mergekit.errors import CheckpointError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d{0,5})\.)?(?P<stem>\w+)\.(?P<leaf>weight|bias)")


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of GGUF in the terms of Hugging Face; see ``architectures.toml`` for the fields."""

    name: str
    class_name: str
    model_type: str
    outside: Mapping[str, str]
    layer: Mapping[str, str]
    config: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    interleaved: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    shift: float = 0.0

    def renamed(self, name: str) -> str | None:
        """What Hugging Face calls a tensor, if it knows it.

        Example:
            >>> architectures()["llama"].renamed("blk.3.attn_q.weight")
            'model.layers.3.self_attn.q_proj.weight'
        """
        match = _NAME.fullmatch(name)
        if not match:
            return None
        table = self.outside if match["layer"] is None else self.layer
        stem = table.get(match["stem"])
        if not stem:
            return None
        prefix = "" if match["layer"] is None else f"model.layers.{match['layer']}."
        return f"{prefix}{stem}.{match['leaf']}"

    def heads(self, name: str, config: Mapping[str, Any]) -> int:
        """In how many heads of a tensor the rows of both halves alternate; 0 if they do not."""
        match = _NAME.fullmatch(name)
        key = self.interleaved.get(match["stem"]) if match else None
        return int(config[key]) if key else 0


@cache
def architectures() -> Mapping[str, Architecture]:
    """The table that is shipped with this package, by GGUF's names."""
    table: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: _architecture(name, row, table) for name, row in table["architectures"].items()}


def _architecture(name: str, row: Mapping[str, Any], table: Mapping[str, Any]) -> Architecture:
    merged: dict[str, Any] = {key: {**table[key], **row.get(key, {})} for key in ("layer", "config")}
    return Architecture(**{**row, **merged, "name": name, "outside": table["outside"]})


def architecture_of(container: Container) -> Architecture:
    """The architecture of a file.

    Raises:
        CheckpointError: the file names none that is in the table.
    """
    name = container.metadata.get("general.architecture")
    if isinstance(name, str) and name in architectures():
        return architectures()[name]
    what = f"the architecture {name!r} is not known" if isinstance(name, str) else "the file names no architecture"
    expected = ", ".join(architectures())
    raise CheckpointError(what, place=str(container.file), expected=expected, hint="the model in Hugging Face's format")
