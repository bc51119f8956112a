"""The small table of exceptions to the rules by which a checkpoint is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Periodic:
    """How a config key marks every n-th layer; see ``exceptions.toml`` for the fields."""

    offset: int | str
    unless: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Implied:
    """A list of layer kinds that loaders work out; see ``exceptions.toml`` for the fields."""

    list: str
    period: int
    period_key: str = ""


@dataclass(frozen=True, slots=True)
class Overlay:
    """The contents of ``exceptions.toml``."""

    post: frozenset[str]
    projector: frozenset[str]
    packed: frozenset[str]
    per_layer: frozenset[str]
    not_per_layer: frozenset[str]
    fixed_length: frozenset[str]
    leading: frozenset[str]
    trailing: frozenset[str]
    until: frozenset[str]
    periodic: Mapping[str, Periodic]
    implied: Mapping[str, Implied]


@cache
def overlay() -> Overlay:
    """Read the table that is shipped with this package."""
    table: dict[str, Any] = tomllib.loads(Path(__file__).with_name("exceptions.toml").read_text(encoding="utf-8"))
    config = table["config"]
    names = ("per_layer", "not_per_layer", "fixed_length", "leading", "trailing", "until")
    return Overlay(
        post=frozenset(table["side"]["post"]),
        projector=frozenset(table["module"]["projector"]),
        packed=frozenset(table["module"]["packed"]),
        periodic={key: Periodic(row["offset"], tuple(row["unless"])) for key, row in config["periodic"].items()},
        implied={model_type: Implied(**row) for model_type, row in config["implied"].items()},
        **{name: frozenset(config[name]) for name in names},
    )
