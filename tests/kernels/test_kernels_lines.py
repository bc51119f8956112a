"""Kernels on the lines and columns of matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_formats import FORMATS, RAW, assert_rounded_sum, decode, encode, weights_like

from mergekit.kernels import arrays, fused
from mergekit.kernels.combine import TILE

MATRICES = [(1, 1), (3, 1), (1, 3), (7, 30), (2, TILE - 1), (3, TILE), (2, 2 * TILE + 5), (5000, 2)]


def operands(count, lines, width, name, seed):
    base = weights_like(seed + 1, lines * width, name)
    near = decode(base) + decode(weights_like(seed, (count, lines * width), "F32", 0.01))
    return base, encode(near, name)


def origin_of(base, based):
    return base if based else base[:0]


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("lines", "width"), MATRICES)
@pytest.mark.parametrize("kernel", ["combine_rows", "combine_columns"])
def test_every_line_or_column_has_coefficients_of_its_own(kernel, lines, width, name, based):
    for count, dtype in [(1, np.float64), (2, np.float32), (3, np.float64)]:
        base, rows = operands(count, lines, width, name, count)
        shape = (lines, count) if kernel == "combine_rows" else (count, width)
        table = np.random.default_rng(count).uniform(-1, 2, shape).astype(dtype)
        out = np.full(lines * width, 77, RAW[name])
        getattr(fused, kernel)(origin_of(base, based), rows, table, out)
        factors = np.repeat(table.T, width, axis=1) if kernel == "combine_rows" else np.tile(table, (1, lines))
        origin = decode(base).astype(np.float64) * based
        terms = factors.astype(np.float64) * (decode(rows) - origin)
        magnitude = np.abs(origin) + (np.abs(factors) * (np.abs(decode(rows)) + np.abs(origin))).sum(0)
        assert_rounded_sum(out, origin + terms.sum(0), magnitude, name, 2.0**-24, 2 * count + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("based", [True, False])
def test_tiles_of_many_rows(count, based):
    base, rows = operands(count, 1, 3 * 1024 // count + 1, "BF16", count)
    sums = np.full((2, count, count), np.nan)
    grain = 2 * 1024 // count
    fused.gram(origin_of(base, based), rows, grain, sums)
    wide = decode(rows).astype(np.float64) - decode(base) * based
    for found, part in zip(sums, (wide[:, :grain], wide[:, grain:]), strict=True):
        exact = part @ part.T
        assert np.abs(found - exact).max() <= 1e-13 * np.abs(exact).max()


@pytest.mark.parametrize("library", ["fused", "numpy", "torch"])
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 300), st.integers(1, 9), st.booleans(), st.integers(0, 10**6)
)
def test_dot_products_of_columns(library, count, lines, width, step, based, seed):
    base, rows = operands(count, lines, width, "F32", seed)
    sums = np.full((-(-lines // step), count * (count + 1) // 2, width), np.nan)
    given = [origin_of(base, based), rows]
    if library == "torch":
        given = [torch.from_numpy(each) for each in given]
    (fused if library == "fused" else arrays).column_gram(*given, step * width, sums)
    wide = (rows - base if based else rows).astype(np.float64).reshape(count, lines, width)
    for found, start in zip(sums, range(0, lines, step), strict=True):
        part = wide[:, start : start + step]
        exact = np.stack([(part[i] * part[j]).sum(axis=0) for i in range(count) for j in range(i + 1)])
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("based", [True, False])
def test_dot_products_of_columns_in_every_format(name, based):
    base, rows = operands(2, 50, 70, name, 3)
    sums = np.full((5, 3, 70), np.nan)
    fused.column_gram(origin_of(base, based), rows, 700, sums)
    wide = (decode(rows) - decode(base) * np.float32(based)).astype(np.float64).reshape(2, 50, 70)
    exact = [(wide[i] * wide[j]).sum(axis=0) for i, j in ((0, 0), (1, 0), (1, 1))]
    np.testing.assert_allclose(sums.sum(axis=0), exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_numbers_of_the_host_beside_an_array(library):
    array = np.zeros(3, np.float32) if library == "numpy" else torch.zeros(3)
    found = arrays.beside(np.array([[0.5, 1 / 3]]), array)
    assert type(found) is type(array)
    np.testing.assert_array_equal(arrays.host(found), np.array([[0.5, 1 / 3]], np.float32))
