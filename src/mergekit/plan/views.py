"""Tensors as a merge reads them: where they lie, or several as if they were one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergekit.checkpoint import Extent, Stored, TensorSpec
from mergekit.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class View:
    """One stored tensor, or several of one dtype laid end to end.

    Parameters:
        spec: dtype and shape as a whole, and the name of the first stored tensor.
        extents: where the bytes are, in their order.
        names: the stored tensors.
    """

    spec: TensorSpec
    extents: tuple[Extent, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, stored: Stored) -> View:
        """A stored tensor as it is."""
        return cls(stored.spec, (stored.extent,), (stored.spec.name,))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.spec.nbytes

    def rows(self, count: int) -> View:
        """The first `count` rows of a view of one tensor."""
        spec = TensorSpec(self.spec.name, self.spec.dtype, (count, *self.spec.shape[1:]))
        (extent,) = self.extents
        return View(spec, (Extent(extent.file, extent.start, extent.start + spec.nbytes),), self.names)

    def cut(self, first: int, last: int) -> Iterator[Extent]:
        """The bytes [first, last) of the view, piece by piece.

        Example:
            >>> from pathlib import Path
            >>> from mergekit.checkpoint import DTYPES
            >>> pieces = (Extent(Path("a"), 8, 12), Extent(Path("b"), 20, 24))
            >>> view = View(TensorSpec("t", DTYPES["U8"], (8,)), pieces, ("t", "u"))
            >>> [(piece.start, piece.stop) for piece in view.cut(3, 6)]
            [(11, 12), (20, 22)]
        """
        for extent in self.extents:
            start, stop = extent.start + max(first, 0), min(extent.start + last, extent.stop)
            if start < stop:
                yield Extent(extent.file, start, stop)
            first, last = first - extent.nbytes, last - extent.nbytes


_EXPERT = re.compile(r"(?P<stem>.*?)(?P<experts>experts)\.(?P<number>\d+)\.(?P<matrix>[\w.]+?)\.weight")
_FUSED = {
    "w1": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
}
"""Fused tensor of each matrix of an expert, and its position among that expert's matrices in there."""

_Matrix = tuple[int, int, Stored]
"""A matrix of an expert: number of the expert, position among its matrices, and the tensor."""

_OLD_STEM, _NEW_STEM = "block_sparse_moe.", "mlp."


def fuse_experts(layer: Mapping[str, Stored]) -> dict[str, View]:
    """The tensors of one layer, with the matrices of all experts as one tensor each.

    With E experts: ``experts.gate_up_proj[e] = [gate_e; up_e]``, shape (E, 2·I, H), and ``experts.down_proj[e] =
    down_e``, shape (E, H, I). Layers without numbered experts stay as they are.

    Parameters:
        layer: tensors by their names within the layer.

    Raises:
        UnsupportedError: the experts of the layer have unequal matrices, or not all of them.
    """
    found: dict[str, list[_Matrix]] = {}
    views: dict[str, View] = {}
    for suffix, stored in layer.items():
        match = _EXPERT.fullmatch(suffix)
        if match and match["matrix"] in _FUSED:
            matrix, place = _FUSED[match["matrix"]]
            name = f"{_renamed(match['stem'])}experts.{matrix}"
            found.setdefault(name, []).append((int(match["number"]), place, stored))
        else:
            views[suffix] = View.of(stored)
    if not found:
        return views
    joined = {name: _joined(name, sorted(parts, key=_order)) for name, parts in found.items()}
    return {_renamed(suffix): view for suffix, view in views.items()} | joined


def _order(part: _Matrix) -> tuple[int, int]:
    return part[:2]


def _renamed(suffix: str) -> str:
    return _NEW_STEM + suffix.removeprefix(_OLD_STEM) if suffix.startswith(_OLD_STEM) else suffix


def _joined(name: str, parts: Sequence[_Matrix]) -> View:
    stored = [part[2] for part in parts]
    first, places = stored[0].spec, 2 if name.endswith("gate_up_proj") else 1
    experts = len(parts) // places
    whole = [(expert, place) for expert in range(experts) for place in range(places)]
    if [_order(part) for part in parts] != whole or len({(one.spec.dtype, one.spec.shape) for one in stored}) > 1:
        raise UnsupportedError(
            f"the experts of `{name}` are not alike and cannot be fused",
            place=str(stored[0].extent.file.parent),
            expected=f"{places} matri{'x' if places == 1 else 'ces'} of one shape and dtype from each expert",
            hint="a merge without fused experts",
        )
    spec = TensorSpec(first.name, first.dtype, (experts, places * first.shape[0], *first.shape[1:]))
    return View(spec, tuple(one.extent for one in stored), tuple(one.spec.name for one in stored))
