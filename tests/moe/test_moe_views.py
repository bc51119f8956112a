"""What mixtures are made of besides stored tensors: cut, joined, put side by side, with noise."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mergekit.checkpoint import DTYPES, Extent, Files, TensorSpec
from mergekit.moe.gates import Direct, random_rows
from mergekit.moe.views import Altered, beside, filled, normal, rows_of, stacked
from mergekit.plan.views import Held, Pieces

SHAPE = (6, 10)


@pytest.fixture
def access():
    with Files() as files:
        yield Direct(files)


@pytest.fixture
def stored(tmp_path):
    """A matrix in a file, and its view."""

    def make(seed, shape=SHAPE, name="BF16"):
        entries = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        entries = (entries.view(np.uint32) & 0xFFFF0000).view(np.float32)  # what bfloat16 holds
        content = (entries.view(np.uint32) >> 16).astype("<u2") if name == "BF16" else entries
        file = Path(tmp_path / f"{seed}.bin")
        file.write_bytes(b"head" + content.tobytes())
        extent = Extent(file, 4, 4 + content.nbytes)
        return entries, Pieces(TensorSpec(f"t{seed}", DTYPES[name], shape), (extent,), (f"t{seed}",))

    return make


def whole(view, access, cuts=()):
    """All entries, read in stretches."""
    out = np.full(view.spec.count, np.nan, np.float32)
    edges = [0, *cuts, view.spec.count]
    for start, stop in pairwise(edges):
        view.read(access, start, stop, out[start:stop])
    return out.reshape(view.spec.shape)


CUTS = ((), (7,), (10, 31), tuple(range(1, 60)))


@pytest.mark.parametrize("cuts", CUTS)
def test_rows_of_stored_and_of_computed_tensors(stored, access, cuts):
    entries, view = stored(0)
    few = tuple(cut for cut in cuts if cut < 30)
    assert np.array_equal(whole(rows_of(view, 2, 3), access, few), entries[2:5])
    assert isinstance(rows_of(view, 2, 3), Pieces)
    held = Held.of("held", entries)
    assert np.array_equal(whole(rows_of(held, 2, 3), access, few), entries[2:5])
    assert list(rows_of(held, 2, 3).extents(0, 5)) == []


@pytest.mark.parametrize("cuts", CUTS)
def test_stacked_and_side_by_side(stored, access, cuts):
    (first, one), (second, other) = stored(0), stored(1)
    joined = stacked([one, other], (12, 10))
    assert isinstance(joined, Pieces)
    assert np.array_equal(whole(joined, access, cuts), np.concatenate([first, second]))
    (third, wide) = stored(2, (6, 4), "F32")
    mixed = beside([one, wide, other])
    assert (mixed.spec.dtype.name, mixed.spec.shape, mixed.names) == ("F32", (6, 24), ("t0", "t2", "t1"))
    assert np.array_equal(whole(mixed, access, cuts), np.concatenate([first, third, second], axis=1))
    assert mixed.nbytes == one.nbytes + wide.nbytes + other.nbytes
    read = {extent.file.name for extent in mixed.extents(24, 48)}
    assert read == {"0.bin", "1.bin", "2.bin"}


def test_tensors_of_unequal_dtypes_are_widened(stored, access):
    (first, one), (second, other) = stored(0), stored(3, SHAPE, "F32")
    joined = stacked([one, other], (2, *SHAPE))
    assert joined.spec.dtype.name == "F32"
    assert np.array_equal(whole(joined, access), np.stack([first, second]))


@pytest.mark.parametrize("cuts", CUTS)
def test_noise_does_not_depend_on_stretches(stored, access, cuts):
    entries, view = stored(0)
    altered = Altered(view, 0.5, 2.0, "expert 0", 3)
    found = whole(altered, access, cuts)
    assert np.array_equal(found, whole(altered, access))
    drawn = normal(3, "expert 0", 0, 60).reshape(SHAPE)
    assert np.array_equal(found, (entries + np.float32(0.5) * drawn) * np.float32(2))


def test_noise_is_normal_and_differs_between_seeds_and_streams():
    drawn = normal(0, "a", 0, 200_000)
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.1)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    for other in (normal(1, "a", 0, 200_000), normal(0, "b", 0, 200_000)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.01


def test_a_long_tensor_has_the_noise_of_its_parts(access):
    view = Held.of("long", np.zeros(150_000, np.float32))
    found = whole(Altered(view, 1.0, 1.0, "s", 0), access, (70_001,))
    assert np.array_equal(found, normal(0, "s", 0, 150_000))


def test_one_number_in_every_entry_takes_no_room(access):
    view = filled("zeros", (1 << 15, 1 << 15), 1.0)
    out = np.empty(5, np.float32)
    view.read(access, 1 << 29, (1 << 29) + 5, out)
    assert out.tolist() == [1.0] * 5
    assert view.values.base.nbytes < 64


def test_random_rows_do_not_depend_on_how_many_there_are():
    few, many = random_rows("random", 2, 3, 16, 5), random_rows("random", 4, 8, 16, 5)
    assert np.array_equal(few, many[:2, :3])
    assert not np.array_equal(few, random_rows("random", 2, 3, 16, 6))
    assert not np.array_equal(few, random_rows("random", 2, 3, 16, -5))
