"""Whether a class declares what a merge method must declare."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from mergekit.methods.contract import Method, Needs, Parameter

_KINDS = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}
_DECLARED = {"name": str, "title": str, "reference": str, "needs": Needs}


def flaws(found: object) -> Iterator[str]:
    """What keeps an object from being a merge method, each in one clause.

    Example:
        >>> from mergekit.methods import METHODS
        >>> list(flaws(METHODS["ties"])), list(flaws(Needs))
        ([], ['is neither a function with `@merge_method` nor a subclass of `mergekit.methods.Method`'])
    """
    if not (isinstance(found, type) and issubclass(found, Method)):
        yield "is neither a function with `@merge_method` nor a subclass of `mergekit.methods.Method`"
        return
    if inspect.isabstract(found):
        yield f"does not define `{'`, `'.join(sorted(found.__abstractmethods__))}`"
    for name, kind in _DECLARED.items():
        if not isinstance(getattr(found, name, None), kind):
            yield f"does not declare `{name}: ClassVar[{kind.__name__}]`"
    if not is_dataclass(found) or not found.__dataclass_params__.frozen:
        yield "is not a dataclass with `@dataclass(frozen=True, kw_only=True)`"
        return
    plain = [each.name for each in fields(found) if "parameter" not in each.metadata]
    yield from (f"has the field `{name}`, which is not declared with `parameter(…)`" for name in plain)
    yield from (flaw for each in found.parameters() for flaw in _flaws(each))


def _flaws(declared: Parameter) -> Iterator[str]:
    if declared.kind not in _KINDS:
        yield f"declares `{declared.name}` to be of the kind {declared.kind!r}, which is not one of {', '.join(_KINDS)}"
    elif not declared.required:
        value = declared.default
        suits = isinstance(value, _KINDS[declared.kind]) and isinstance(value, bool) == (declared.kind == "bool")
        if not suits:
            yield f"declares `{declared.name}` with the default {value!r}, which is no {declared.kind}"
        elif value is not None and not declared.fits(value):
            yield f"declares `{declared.name}` with the default {value!r}, out of its bounds: {declared.bounds}"
