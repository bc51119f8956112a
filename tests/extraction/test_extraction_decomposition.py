"""Singular values and vectors, exactly and from random sketches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.errors import NonFiniteError
from mergekit.lora import Goal, decompose
from mergekit.lora.decomposition import SMALL

WAYS = [{"exact": True}, {"exact": False}]


def matrix(lines, columns, values, seed=0):
    """A matrix with these singular values."""
    draw = np.random.default_rng(seed)
    least = len(values)
    left = np.linalg.qr(draw.standard_normal((lines, least)))[0]
    right = np.linalg.qr(draw.standard_normal((columns, least)))[0]
    return ((left * values) @ right.T).astype(np.float32)


def error(found, wanted, distribute=True):
    b, a = found.factors(distribute)
    return float(np.linalg.norm(wanted - b.astype(np.float64) @ a))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("distribute", [True, False])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 7), (7, 1), (12, 12)])
def test_small_matrices_are_restored(shape, distribute, way):
    wanted = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = decompose(wanted, Goal(), **way)
    assert found.rank == min(shape)
    assert found.exact
    assert error(found, wanted, distribute) < 1e-5
    np.testing.assert_allclose(found.values, np.linalg.svd(wanted, compute_uv=False), rtol=1e-5)
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(found.rank), atol=1e-5)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(found.rank), atol=1e-5)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_rank_does_better(lines, columns, rank, seed):
    wanted = np.random.default_rng(seed).standard_normal((lines, columns)).astype(np.float32)
    found = decompose(wanted, Goal(rank))
    rest = np.linalg.svd(wanted.astype(np.float64), compute_uv=False)[rank:]
    assert error(found, wanted) == pytest.approx(np.linalg.norm(rest), rel=1e-3, abs=1e-5)
    assert found.energy == pytest.approx(1 - np.square(rest).sum() / np.square(wanted).sum(), abs=1e-5)


FALLING = {
    "fast": 0.9 ** np.arange(530),
    "slowly": (np.arange(530) + 1.0) ** -0.5,
    "hardly": (np.arange(530) + 1.0) ** -0.1,
}


@pytest.mark.parametrize("falling", FALLING)
@pytest.mark.parametrize("shape", [(530, 560), (560, 530)])
def test_sketches_are_within_two_percent_of_the_least_error(shape, falling):
    values = FALLING[falling]
    assert min(shape) > SMALL
    wanted = matrix(*shape, values)
    found = decompose(wanted, Goal(32))
    assert not found.exact
    assert found.rank == 32
    least, met = np.linalg.norm(values[32:]), error(found, wanted)
    assert met < 1.02 * least + 1e-5
    assert found.energy == pytest.approx(1 - met**2 / np.square(wanted.astype(np.float64)).sum(), abs=1e-4)


def test_lapack_on_request():
    values = FALLING["slowly"]
    wanted = matrix(530, 540, values)
    found = decompose(wanted, Goal(32), exact=True)
    assert found.exact
    assert error(found, wanted) == pytest.approx(np.linalg.norm(values[32:]), rel=1e-3)


def test_the_rank_follows_the_energy():
    values = np.array([8.0, 4.0, 2.0, 1.0])
    wanted = matrix(9, 7, values)
    shares = np.cumsum(values**2) / np.sum(values**2)
    for rank in (1, 2, 3, 4):
        assert decompose(wanted, Goal(energy=shares[rank - 1] - 0.001)).rank == rank
    assert decompose(wanted, Goal(2, energy=0.9999)).rank == 2


def test_a_sketch_grows_until_it_holds_the_energy():
    values = np.concatenate([np.full(90, 10.0), np.full(440, 0.1)])
    wanted = matrix(530, 560, values)
    found = decompose(wanted, Goal(200, energy=0.95))
    assert not found.exact
    assert 86 <= found.rank <= 88
    assert found.energy >= 0.95
    assert decompose(wanted, Goal(200, epsilon=1.0)).rank == 90


def test_values_up_to_epsilon_are_dropped():
    wanted = matrix(9, 7, np.array([8.0, 4.0, 2.0, 1.0]))
    assert decompose(wanted, Goal(epsilon=1.5)).rank == 3
    assert decompose(wanted, Goal(epsilon=9.0)).rank == 0
    assert decompose(wanted, Goal(epsilon=9.0)).energy == 0


def test_nothing_has_no_rank():
    found = decompose(np.zeros((5, 3), np.float32), Goal())
    b, a = found.factors(True)
    assert (found.rank, found.energy, b.shape, a.shape) == (0, 1.0, (5, 0), (0, 3))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_is_refused(broken, way):
    wanted = np.ones((4, 4), np.float32)
    wanted[1, 2] = broken
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        decompose(wanted, Goal(), **way)


def test_the_same_seed_gives_the_same_bits_and_the_same_orientation():
    wanted = matrix(530, 560, FALLING["fast"])
    one, again, other = (decompose(wanted, Goal(16), seed=seed) for seed in (1, 1, 2))
    assert one.left.tobytes() == again.left.tobytes()
    assert one.right.tobytes() == again.right.tobytes()
    np.testing.assert_allclose(one.left, other.left, atol=1e-3)
    peaks = np.take_along_axis(one.left, np.abs(one.left).argmax(axis=0)[None], axis=0)
    assert (peaks > 0).all()
