"""Several stored tensors as if they were one."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit.checkpoint import DTYPES, Extent, Stored, TensorSpec
from mergekit.errors import UnsupportedError
from mergekit.plan.views import Pieces, fuse_experts


@st.composite
def views(draw):
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    extents = []
    for number, size in enumerate(sizes):
        start = draw(st.integers(0, 100))
        extents.append(Extent(Path(f"{number}"), start, start + size))
    spec = TensorSpec("t", DTYPES["U8"], (sum(sizes),))
    return Pieces(spec, tuple(extents), tuple(map(str, range(len(sizes)))))


def places(extents):
    return [(extent.file, byte) for extent in extents for byte in range(extent.start, extent.stop)]


@given(view=views(), bounds=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_a_cut_is_the_same_bytes_as_of_the_whole(view, bounds):
    first, last = sorted(bounds)
    cut = list(view.extents(first, last))
    assert places(cut) == places(view.pieces)[first:last]
    assert all(extent.nbytes > 0 for extent in cut)


@given(view=views(), cuts=st.lists(st.integers(0, 45), max_size=4))
def test_neighbouring_cuts_add_up(view, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut <= view.nbytes), view.nbytes]
    pieces = [extent for first, last in pairwise(edges) for extent in view.extents(first, last)]
    assert places(pieces) == places(view.pieces)


def stored(name, shape, dtype="BF16"):
    spec = TensorSpec(name, DTYPES[dtype], shape)
    return Pieces.of(Stored(spec, Extent(Path("file"), 0, spec.nbytes)))


def test_experts_become_one_tensor_each_kind():
    layer = {"block_sparse_moe.gate.weight": stored("l.block_sparse_moe.gate.weight", (12, 8))}
    for expert in reversed(range(12)):
        for matrix, shape in {"w2": (8, 6), "w3": (6, 8), "w1": (6, 8)}.items():
            suffix = f"block_sparse_moe.experts.{expert}.{matrix}.weight"
            layer[suffix] = stored(f"l.{suffix}", shape)
    fused = fuse_experts(layer)
    assert {name: view.spec.shape for name, view in fused.items()} == {
        "mlp.gate.weight": (12, 8),
        "mlp.experts.gate_up_proj": (12, 12, 8),
        "mlp.experts.down_proj": (12, 8, 6),
    }
    order = [name.split("experts.")[1] for name in fused["mlp.experts.gate_up_proj"].names]
    assert order == [f"{expert}.{matrix}.weight" for expert in range(12) for matrix in ("w1", "w3")]
    assert all(view.nbytes == sum(extent.nbytes for extent in view.pieces) for view in fused.values())


def test_a_layer_without_experts_stays_as_it_is():
    layer = {"mlp.up_proj.weight": stored("up", (6, 8)), "block_sparse_moe.odd": stored("odd", (2,))}
    assert {name: view.names for name, view in fuse_experts(layer).items()} == {
        "mlp.up_proj.weight": ("up",),
        "block_sparse_moe.odd": ("odd",),
    }


def experts(*changes):
    """Three experts of two matrices each but for some changes: suffix, and shape and dtype or None to leave it out."""
    parts = {f"mlp.experts.{e}.{kind}_proj.weight": ((6, 8), "BF16") for e in range(3) for kind in ("gate", "up")}
    parts.update(changes)
    return {suffix: stored(f"l.{suffix}", *how) for suffix, how in parts.items() if how is not None}


@pytest.mark.parametrize(
    "change",
    [
        ("mlp.experts.1.up_proj.weight", ((6, 8), "F32")),
        ("mlp.experts.1.up_proj.weight", ((8, 6), "BF16")),
        ("mlp.experts.1.up_proj.weight", None),
        ("mlp.experts.4.up_proj.weight", ((6, 8), "BF16")),
    ],
)
def test_experts_that_are_not_alike_are_not_fused(change):
    assert list(fuse_experts(experts())) == ["mlp.experts.gate_up_proj"]
    with pytest.raises(UnsupportedError, match=r"the experts of `mlp\.experts\.gate_up_proj` are not alike"):
        fuse_experts(experts(change))
