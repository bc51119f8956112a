"""Settings: what may be written as the value of a parameter, and what it evaluates to.

::

    setting     := scalar | gradient | conditional | [conditional, ...]
    scalar      := bool | int | float | string
    gradient    := [scalar, ...]                               (may be empty: no value)
    conditional := {value: scalar | gradient, filter: string}  (without filter: always)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

Scalar = bool | int | float | str
Kind = Literal["float", "int", "bool", "str"]

_NOUNS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text; put it in quotes"}
_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "off", "f", "n", "0"})
# Positions and whole-number gradients are computed from fractions: 1/49 * 49 misses 1 by one ulp.
_SNAP = 1e-9


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for every tensor."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class Gradient:
    """Values at equal distances over the layers of an output slice; none at all means "no value"."""

    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A value for the tensors whose name contains `filter`; None or ``*`` means every tensor."""

    filter: str | None
    value: Constant | Gradient


@dataclass(frozen=True, slots=True)
class Filtered:
    """Cases of which the first that matches a tensor decides."""

    cases: tuple[Case, ...]


Setting = Constant | Gradient | Filtered


def coerce(value: Scalar, kind: Kind) -> Scalar:
    """Turn what YAML made of a scalar into what a parameter needs.

    Text that spells a number counts as that number, because YAML 1.1 reads ``1e-5`` as text; true and false count as
    1 and 0; a float without a fraction counts as a whole number; the usual words and 0 and 1 count as true and false.

    Raises:
        ValueError: if the value cannot be read as `kind`, is not finite, or is beyond 64 bits.

    Example:
        >>> coerce("1e-5", "float"), coerce(2.0, "int"), coerce("yes", "bool")
        (1e-05, 2, True)
        >>> coerce("abc", "float")
        Traceback (most recent call last):
        ...
        ValueError: `abc` is not a number
    """
    result: Scalar | None
    if kind == "float":
        result = _float(value)
    elif kind == "int":
        result = _int(value)
    elif kind == "bool":
        result = _bool(value)
    else:
        result = value if isinstance(value, str) else None
    if result is None:
        raise ValueError(f"`{value}` is not {_NOUNS[kind]}")
    return result


def evaluate(setting: Setting, tensor: str, depth: float, kind: Kind) -> Scalar | None:
    """Work out the value of a setting for one tensor.

    Parameters:
        setting: the setting.
        tensor: name of the tensor, which filters are compared with.
        depth: position of the tensor's layer in its output slice, 0 (first) to 1 (last).
        kind: what the parameter needs.

    Returns:
        The value, or None if the setting has none for this tensor: its gradient is empty or no filter matches.

    Raises:
        ValueError: if a scalar cannot be read as `kind`, or a whole number would have a fraction.

    Example:
        >>> evaluate(Gradient((1, 2, 4)), "model.layers.1.mlp.up_proj.weight", 1 / 3, "float")
        1.6666666666666665
    """
    if isinstance(setting, Constant):
        return coerce(setting.value, kind)
    if isinstance(setting, Gradient):
        return _at([coerce(value, kind) for value in setting.values], depth, kind)
    chosen = next((case.value for case in setting.cases if matches(case.filter, tensor)), None)
    return None if chosen is None else evaluate(chosen, tensor, depth, kind)


def matches(filter: str | None, tensor: str) -> bool:
    """Tell whether a filter applies to a tensor: it is absent, is ``*``, or is a part of the tensor's name.

    Example:
        >>> matches("mlp", "model.layers.0.mlp.up_proj.weight"), matches("mlp.*", "model.layers.0.mlp.up_proj.weight")
        (True, False)
    """
    return filter is None or filter == "*" or filter in tensor


def leaves(setting: Setting) -> Iterator[tuple[str, Scalar]]:
    """Yield every scalar of a setting with its path relative to the setting.

    Example:
        >>> list(leaves(Filtered((Case("mlp", Gradient((0.1, 0.9))), Case(None, Constant(1))))))
        [('[0].value[0]', 0.1), ('[0].value[1]', 0.9), ('[1].value', 1)]
    """
    if isinstance(setting, Constant):
        yield "", setting.value
    elif isinstance(setting, Gradient):
        for index, value in enumerate(setting.values):
            yield f"[{index}]", value
    else:
        for index, case in enumerate(setting.cases):
            for path, value in leaves(case.value):
                yield f"[{index}].value{path}", value


def filters(setting: Setting) -> Iterator[tuple[str, str]]:
    """Yield every filter of a setting with its path relative to the setting.

    Example:
        >>> list(filters(Filtered((Case("mlp", Constant(1)), Case(None, Constant(2))))))
        [('[0].filter', 'mlp')]
    """
    if isinstance(setting, Filtered):
        for index, case in enumerate(setting.cases):
            if case.filter is not None:
                yield f"[{index}].filter", case.filter


def _at(values: list[Scalar], depth: float, kind: Kind) -> Scalar | None:
    if not values:
        return None
    position = _snapped(depth * (len(values) - 1))
    index = math.trunc(position)
    if kind in ("bool", "str"):
        return values[index]
    numbers = cast("list[float]", values)
    share = position - index
    value = (1 - share) * numbers[index] + share * numbers[min(len(numbers) - 1, index + 1)]
    return coerce(_snapped(value) if kind == "int" else value, kind)


def _snapped(number: float) -> float:
    return float(round(number)) if abs(number - round(number)) < _SNAP else number


def _float(value: Scalar) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _int(value: Scalar) -> int | None:
    try:
        whole = int(value) if isinstance(value, int | str) else None
    except ValueError:
        whole = None
    if whole is None:
        number = _float(value)
        whole = int(number) if number is not None and number.is_integer() else None
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


def _bool(value: Scalar) -> bool | None:
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return bool(value) if value in (0, 1) else None
