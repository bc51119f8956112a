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
        checksum: of its bytes; None in reports of older versions.
        distance: from its first source, as a share of the norm of that; None where that is 0 or none was taken.
    """

    dtype: str
    shape: tuple[int, ...]
    norm: float | None
    checksum: int | None
    distance: float | None


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
        tensors: by name.
        shards: by file name.
        parameters: how many there are in all tensors.
        base_only: whether there are tensors with a base, and all of them equal it.
        raw: whether raw checkpoints were merged, which have no config.
    """

    tensors: Mapping[str, TensorClaim]
    shards: Mapping[str, ShardClaim]
    parameters: int
    base_only: bool
    raw: bool


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
            tensors={str(entry["name"]): _tensor(entry) for entry in report["tensors"]},
            shards={
                str(entry["file"]): ShardClaim(int(entry["bytes"]), str(entry["header_sha256"]))
                for entry in report["shards"]
            },
            parameters=int(report["totals"]["parameters"]),
            base_only=_base_only(report["tensors"], report["settings"]),
            raw="raw" in report.get("options", {}),
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"it has another structure ({type(error).__name__}: {error})") from error


def _tensor(entry: Mapping[str, Any]) -> TensorClaim:
    checksum = entry.get("checksum")
    return TensorClaim(
        str(entry["dtype"]),
        tuple(map(int, entry["shape"])),
        _number(entry["norm"]),
        None if checksum is None else int(checksum, 16),
        _number(entry["relative_distance"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _base_only(tensors: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> bool:
    based = [entry for entry in tensors if settings[entry["settings"]]["based"]]
    return bool(based) and all(_equals_base(entry) for entry in based)


def _equals_base(entry: Mapping[str, Any]) -> bool:
    """Where the base is 0 there is no relative distance, and whatever is not 0 differs."""
    distance = entry["relative_distance"]
    return bool(distance == 0 if distance is not None else not entry["norm"])
