"""Storage formats by arithmetic in float64, independent of the kernels' bit tricks, and values to try them with."""

import numpy as np

FORMATS = ("BF16", "F16", "F32")
RAW = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32}
_DIGITS = {"BF16": 8, "F16": 11, "F32": 24}  # significant bits
_LEAST = {"BF16": -125, "F16": -13, "F32": -125}  # exponent (as np.frexp counts) of the least normal number


def spacing(values, name):
    """Distance between neighbours in the format around each value (at a power of two, the greater one)."""
    exponents = np.frexp(np.asarray(values, np.float64))[1]
    return np.ldexp(1.0, np.maximum(exponents, _LEAST[name]) - _DIGITS[name])


def rounded(values, name):
    """The nearest numbers of the format, ties to even, as float64."""
    values = np.asarray(values, np.float64)
    finite = np.where(np.isfinite(values), values, 0)
    step = spacing(finite, name)
    near = np.copysign(np.rint(finite / step) * step, values)
    limit = 2.0**16 if name == "F16" else 2.0**128
    near = np.where(np.abs(near) >= limit, np.copysign(np.inf, values), near)
    return np.where(np.isfinite(values), near, values)


def encode(values, name):
    """Raw entries of the nearest numbers of the format."""
    near = rounded(values, name)
    if name == "BF16":
        return (near.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return near.astype(np.float16).view(np.int16) if name == "F16" else near.astype(np.float32)


def decode(raw):
    """Raw entries as float32."""
    raw = np.ascontiguousarray(raw)
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view(np.float16).astype(np.float32) if raw.dtype == np.int16 else raw


def ulps(left, right):
    """Steps between two raw arrays of the same format, counted in representable numbers."""
    return np.abs(_ordinal(left) - _ordinal(right))


def _ordinal(raw):
    bits = np.ascontiguousarray(raw).view(np.uint32 if raw.dtype == np.float32 else np.uint16).astype(np.int64)
    sign = 1 << (8 * raw.dtype.itemsize - 1)
    return np.where(bits & sign, sign - bits, bits)


def weights_like(seed, shape, name="F32", scale=0.05):
    """Raw random entries as trained weights have them, some of them 0."""
    random = np.random.default_rng(seed)
    values = random.normal(0, scale, shape)
    values[random.random(shape) < 0.02] = 0
    return encode(values, name)


def assert_rounded_sum(raw, exact, magnitude, name, unit=2.0**-24, operations=1):
    """Raw entries are `exact`, computed with a relative error of `unit` an operation on `magnitude`, rounded once."""
    slack = operations * unit * magnitude + np.where(name == "F32", 0, spacing(exact, "F32"))
    bound = 0.5 * spacing(np.abs(exact) + slack, name) + slack
    error = np.abs(decode(raw).astype(np.float64) - exact)
    worst = np.argmax(error - bound) if error.size else 0
    assert (error <= bound).all(), (worst, error.flat[worst], bound.flat[worst])
