"""The matrices of all experts of a layer as one tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit.checkpoint import TensorSpec
from mergekit.errors import UnsupportedError
from mergekit.plan.views.base import View
from mergekit.plan.views.joined import Joined
from mergekit.plan.views.pieces import Pieces

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

_Matrix = tuple[int, int, View]
"""A matrix of an expert: number of the expert, position among its matrices, and the tensor."""

_OLD_STEM, _NEW_STEM = "block_sparse_moe.", "mlp."


def fuse_experts(layer: Mapping[str, View]) -> dict[str, View]:
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
    for suffix, view in layer.items():
        match = _EXPERT.fullmatch(suffix)
        if match and match["matrix"] in _FUSED:
            matrix, place = _FUSED[match["matrix"]]
            name = f"{_renamed(match['stem'])}experts.{matrix}"
            found.setdefault(name, []).append((int(match["number"]), place, view))
        else:
            views[suffix] = view
    if not found:
        return views
    joined = {name: _joined(name, sorted(parts, key=_order)) for name, parts in found.items()}
    return {_renamed(suffix): view for suffix, view in views.items()} | joined


def _order(part: _Matrix) -> tuple[int, int]:
    return part[:2]


def _renamed(suffix: str) -> str:
    return _NEW_STEM + suffix.removeprefix(_OLD_STEM) if suffix.startswith(_OLD_STEM) else suffix


def _joined(name: str, parts: Sequence[_Matrix]) -> View:
    views = [part[2] for part in parts]
    first, places = views[0].spec, 2 if name.endswith("gate_up_proj") else 1
    experts = len(parts) // places
    whole = [(expert, place) for expert in range(experts) for place in range(places)]
    if [_order(part) for part in parts] != whole or len({(one.spec.dtype, one.spec.shape) for one in views}) > 1:
        raise UnsupportedError(
            f"the experts of `{name}` are not alike and cannot be fused",
            place=str(Path(views[0].files[0]).parent),
            expected=f"{places} matri{'x' if places == 1 else 'ces'} of one shape and dtype from each expert",
            hint="a merge without fused experts",
        )
    spec = TensorSpec(first.name, first.dtype, (experts, places * first.shape[0], *first.shape[1:]))
    names = tuple(name for one in views for name in one.names)
    stored = [one for one in views if isinstance(one, Pieces)]
    if len(stored) == len(views):
        return Pieces(spec, tuple(piece for one in stored for piece in one.pieces), names)
    return Joined(spec, tuple(views), names)
