"""What a merge report claims about the weights beside it; a report may be edited, cut short or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.report.record import FORMAT


@dataclass(frozen=True, slots=True)
class TensorClaim:
    """One tensor of a report.

    Parameters:
        dtype: its safetensors name.
        shape: in elements.
        norm: Euclidean norm, or None where none was taken.
        grain: entries that were added up at once.
    """

    dtype: str
    shape: tuple[int, ...]
    norm: float | None
    grain: int


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """One weight file of a report.

    Parameters:
        nbytes: its size in bytes.
        header: hash of its header.
    """

    nbytes: int
    header: str


@dataclass(frozen=True, slots=True)
class Claims:
    """The part of a report that can be checked.

    Parameters:
        machine: where the norms were computed.
        tensors: by name.
        shards: by file name.
        base_only: whether there are tensors with a base, and all of them equal it.
    """

    machine: str
    tensors: Mapping[str, TensorClaim]
    shards: Mapping[str, ShardClaim]
    base_only: bool


def read_claims(report: Any) -> Claims:
    """Take a report apart.

    Parameters:
        report: the parsed merge_report.json.

    Raises:
        ValueError: it is not a report of the format that this version writes.
    """
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ValueError(f"it does not say `format: {FORMAT}`")
    try:
        return Claims(
            machine=str(report["machine"]),
            tensors={str(entry["name"]): _tensor(entry) for entry in report["tensors"]},
            shards={
                str(entry["file"]): ShardClaim(int(entry["bytes"]), str(entry["header_sha256"]))
                for entry in report["shards"]
            },
            base_only=_base_only(report["tensors"], report["settings"]),
        )
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"it has another structure ({type(error).__name__}: {error})") from error


def _tensor(entry: Mapping[str, Any]) -> TensorClaim:
    norm = entry["norm"]
    grain = int(entry["grain"])
    if grain < 1:
        raise ValueError(f"a grain of {grain} entries")
    shape = tuple(map(int, entry["shape"]))
    return TensorClaim(str(entry["dtype"]), shape, None if norm is None else float(norm), grain)


def _base_only(tensors: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> bool:
    based = [entry for entry in tensors if settings[entry["settings"]]["based"]]
    return bool(based) and all(_equals_base(entry) for entry in based)


def _equals_base(entry: Mapping[str, Any]) -> bool:
    """Where the base is 0 there is no relative distance, and whatever is not 0 differs."""
    distance = entry["relative_distance"]
    return bool(distance == 0 if distance is not None else not entry["norm"])
