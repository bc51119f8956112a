"""The rows of routers: out of prompts, or random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint import Extent, Files
from mergekit.checkpoint.hub import RemoteFiles
from mergekit.checkpoint.reading import Buffer
from mergekit.errors import Findings
from mergekit.moe.dense import Dense
from mergekit.moe.hidden import fitted_vectors, hidden_vectors
from mergekit.moe.language import HIDDEN, RANDOM, Expert, MoeRecipe
from mergekit.moe.network import GateOptions
from mergekit.moe.prompts import encoder_of
from mergekit.plan.views import View

Rows = NDArray[Any]
_T = TypeVar("_T")

_LEAST_NORM = 1e-8
_MUCH = 5.0  # condition number of a router's rows from which on some experts are hardly told apart
_FEW = 3  # layers that are named in a warning


def router_rows(
    recipe: MoeRecipe, base: Dense, gated: Sequence[Expert], seed: int, options: GateOptions, findings: Findings
) -> Rows:
    """Rows of the routers of all layers, float32, shape (layers, experts and gated shared experts, width).

    Parameters:
        recipe: the recipe.
        base: the model whose states or embeddings stand for prompts.
        gated: experts that need a row, those of the router first.
        seed: of random rows.
        options: how the model is run.
        findings: where it is recorded that rows are hardly told apart.

    Raises:
        UnsupportedError: the model is to be run, and transformers or torch is not installed.
        MissingModelError: prompts are to be cut into tokens, and the base has no tokenizer.
    """
    layers, width = len(base.layers), base.width
    if recipe.gate_mode in RANDOM:
        rows = random_rows(recipe.gate_mode, layers, len(gated), width, seed)
    elif all(not expert.positive for expert in gated):  # a single expert, which gets everything
        return np.zeros((layers, len(gated), width), np.float32)
    else:
        rows = _prompted(recipe, base, gated, options, findings)
    # Fitted rows add up to nothing where no prompt is negative: they span one dimension less.
    _warn_of_likeness(rows, findings, 1 if recipe.gate_mode == "fitted" else 0)
    return rows


def random_rows(mode: str, layers: int, experts: int, width: int, seed: int) -> Rows:
    """Random rows: normal, or even within ±1/√width; a function of seed, layer and expert.

    Example:
        >>> bool((random_rows("random", 2, 3, 4, 0)[1, 2] == random_rows("random", 5, 4, 4, 0)[1, 2]).all())
        True
    """
    rows = np.empty((layers, experts, width), np.float32)
    for layer, expert in np.ndindex(layers, experts):
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % (1 << 64), layer, expert])))
        normal = mode == "random"
        rows[layer, expert] = draw.standard_normal(width) if normal else draw.uniform(-1, 1, width) / np.sqrt(width)
    return rows


def _prompted(
    recipe: MoeRecipe, base: Dense, gated: Sequence[Expert], options: GateOptions, findings: Findings
) -> Rows:
    notices: list[str] = []
    encode = encoder_of(base.model.checkpoint, base.vocabulary, notices)
    for notice in notices:
        findings.notice(notice)
    sides = [([encode(text) for text in each.positive], [encode(text) for text in each.negative]) for each in gated]
    if recipe.gate_mode == "fitted":
        return fitted_vectors(base.model, sides, options)
    if recipe.gate_mode in HIDDEN:
        return hidden_vectors(base.model, sides, recipe.gate_mode == "hidden_avg", options)
    rows = np.stack([_embedded(base, positive, negative) for positive, negative in sides])
    return np.broadcast_to(rows, (len(base.layers), *rows.shape)).copy()


def _embedded(base: Dense, positive: Sequence[Sequence[int]], negative: Sequence[Sequence[int]]) -> Rows:
    """The direction of the sum of a prompt's embeddings, without that of the negative prompts."""
    row = _unit(_summed(base, positive))
    return _unit(row - _unit(_summed(base, negative))) if negative else _unit(row)


def _summed(base: Dense, prompts: Sequence[Sequence[int]]) -> Rows:
    embedding = base.model.embedding
    assert embedding is not None
    ids = [number for prompt in prompts for number in prompt]
    known = {number: place for place, number in enumerate(dict.fromkeys(ids))}
    table = read_rows(embedding, list(known), base.model.checkpoint.remote)
    total = np.zeros(base.width, np.float32)
    for number in ids:
        total += table[known[number]]
    return total


def _unit(vector: Rows) -> Rows:
    found: Rows = vector / np.float32(max(float(np.linalg.norm(vector)), _LEAST_NORM))
    return found


@final
@dataclass(slots=True)
class Direct:
    """Reads what views ask for, with room that is made anew each time.

    Parameters:
        files: the inputs.
    """

    files: RemoteFiles
    _kept: dict[int, Any] = field(default_factory=dict)

    def read(self, extent: Extent, into: Buffer) -> None:
        """Fill a buffer with the bytes of an extent."""
        self.files.read(extent, into)

    def gather(self, file: Path, starts: Sequence[int], places: Sequence[int], nbytes: int, into: Buffer) -> None:
        """Fill parts of a buffer with as many stretches of a file, all of one size."""
        self.files.gather(file, starts, places, nbytes, into)

    def buffer(self, use: str, nbytes: int) -> Rows:
        """Room for one use."""
        del use
        return np.empty(nbytes, np.uint8)

    def kept(self, view: View, make: Any) -> Any:
        """What a view needs for every stretch."""
        if id(view) not in self._kept:
            self._kept[id(view)] = make()
        return self._kept[id(view)]


def read_rows(view: View, rows: Sequence[int], remote: Any) -> Rows:
    """Some rows of a matrix, float32.

    Parameters:
        view: the matrix.
        rows: their numbers.
        remote: the files of its model that are on the hub.
    """
    width = view.spec.shape[1]
    found = np.empty((len(rows), width), np.float32)
    with Files() as local, RemoteFiles(local, dict(remote), 1) as files:
        access = Direct(files)
        for row, number in zip(found, rows, strict=True):
            view.read(access, number * width, (number + 1) * width, row)
    return found


def _warn_of_likeness(rows: Rows, findings: Findings, dependent: int) -> None:
    """Warn of layers whose rows are nearly linear combinations of each other: experts that share their tokens."""
    if rows.shape[1] - dependent < 2:
        return
    alike = [layer for layer, own in enumerate(rows) if _condition(own, dependent) > _MUCH]
    if alike:
        findings.warn(
            f"the experts are hardly told apart in {_listed(alike, len(rows))}: some will see few tokens until the "
            "routers are trained",
            expected="prompts that are less alike, or negative prompts",
        )


def _condition(rows: Rows, dependent: int) -> float:
    """Greatest over least singular value, those left out that are 0 for as many dependent rows."""
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    least = values[-1 - dependent]
    return float(values[0] / least) if least else float("inf")


def _listed(alike: Sequence[int], layers: int) -> str:
    if len(alike) == layers:
        return "all layers" if layers > 1 else "the only layer"
    shown = ", ".join(map(str, alike[:_FEW])) + (f" and {len(alike) - _FEW} more" if len(alike) > _FEW else "")
    return f"layer{'s' * (len(alike) > 1)} {shown} of {layers}"
