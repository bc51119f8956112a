"""Merge methods from plain functions on arrays."""

from __future__ import annotations

import inspect
import math
import traceback
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, make_dataclass
from types import FunctionType
from typing import Annotated, Any, ClassVar, Literal, final, get_args, get_origin, get_type_hints

import numpy as np

from mergekit.errors import MethodError, Place
from mergekit.kernels import GRAIN
from mergekit.methods.contract import Array, Block, Method, Needs, Stats, parameter

Library = Literal["numpy", "torch"]
Base = Literal["required", "optional", "ignored"]

_FIELD = "given_"  # begins the fields for parameters, so that a parameter may be called like a part of the class
_KINDS = (float, int, bool, str)
_ANNOTATIONS = (
    "float, int, bool, str, a Literal of words, or a tuple such as `PerModel` with one of them for each model"
)


@final
@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of a parameter, both inclusive, in its annotation.

    Parameters:
        low: least value, or None.
        high: greatest value, or None.

    Example:
        >>> share = Annotated[float, Bounds(0, 1)]
    """

    low: float | None = None
    high: float | None = None


def place_in(file: str, error: BaseException) -> Place:
    """Where in a Python file an exception comes from: the innermost of its lines that was running."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return Place("", file, error.lineno)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return Place("", file, lines[-1] if lines else None)


def merge_method(
    *,
    title: str,
    reference: str = "",
    base: Base = "required",
    least: int = 1,
    most: int | None = None,
    whole: bool = False,
    arrays: Library = "numpy",
) -> Callable[[Callable[..., Array]], type[Method]]:
    r"""Make a merge method of a function ``f(base, models, *, …)``, or ``f(models, *, …)`` if the base is ignored.

    The function is given float32 arrays: `models` of shape (k, n), and `base` of shape (n,), which is None if it is
    optional and the recipe has none. It returns the merged entries, shape (n,). The arrays hold a stretch of a tensor,
    or all of it; an entry of the result may depend on nothing but the same entry of the operands. With `whole` they are
    whole tensors instead, `models` of shape (k, \*shape). The arrays it is given must not be changed. Several threads
    call the function at a time, each for another stretch or tensor. Of memory, the merge counts what the function is
    given, and as much again in float64 for what it computes on the way.

    Keyword-only arguments are the parameters of recipes. They are annotated as float, int, bool, str or
    ``Literal["one", "other"]``, as a tuple of one of them for each model (`PerModel` is that of floats), or as
    ``Annotated[float, Bounds(0, 1)]``. One without a default must be given. A trailing underscore, as in ``lambda_``,
    does not belong to the name.

    Parameters:
        title: for people.
        reference: where the method is published, ``https://…``.
        base: "required", "optional" or "ignored"; see :class:`Needs`.
        least, most: bounds of the number of models, the base not counted unless it is ignored.
        whole: see above; takes memory for the largest tensor of every model.
        arrays: what the function computes with: "numpy", or "torch" on whatever device the merge runs on.

    Raises:
        MethodError: the function's arguments are not of that form, or a setting of the decorator is none.

    Example:
        >>> from mergekit.methods import PerModel
        >>> @merge_method(title="Sum", base="ignored")
        ... def total(models, *, weight: PerModel = 1.0):
        ...     return sum(factor * model for factor, model in zip(weight, models))
        >>> [(each.name, each.per_model, each.default) for each in total.parameters()]
        [('weight', True, 1.0)]
    """

    def made(function: Callable[..., Array]) -> type[Method]:
        if not isinstance(function, FunctionType):
            raise MethodError(f"{function!r} cannot be a merge method", expected="a function, written with `def`")
        for name, value, expected in _wrong_settings(title, reference, base, least, most, arrays):
            raise _misdeclared(function, f"`{name}` is {value!r}", expected)
        own = {
            "__doc__": function.__doc__,
            "name": function.__name__,
            "title": title,
            "reference": reference,
            "needs": Needs(base, least, most),
            "function": staticmethod(function),
            "whole": whole,
            "arrays": arrays,
        }
        entries = list(_entries(function, 1 if base == "ignored" else 2))
        name = function.__name__
        method = make_dataclass(name, entries, bases=(FunctionMethod,), namespace=own, frozen=True, kw_only=True)
        # What stands in the function's place is found by its name, as pickles of instances do.
        method.__module__, method.__qualname__ = function.__module__, function.__qualname__
        return method

    return made


def _wrong_settings(
    title: object, reference: object, base: object, least: object, most: object, arrays: object
) -> Iterator[tuple[str, object, str]]:
    """Settings of the decorator that are not what they must be: name, value, and what was expected."""
    for name, text in (("title", title), ("reference", reference)):
        if not isinstance(text, str):
            yield name, text, "text"
    for name, word, words in (("base", base, get_args(Base)), ("arrays", arrays, get_args(Library))):
        if word not in words:
            yield name, word, " or ".join(f'"{each}"' for each in words)
    if type(least) is not int or least < 1:
        yield "least", least, "a whole number of models, at least 1"
    elif most is not None and (type(most) is not int or most < least):
        yield "most", most, f"a whole number of models, at least {least}, or None"


def _entries(function: FunctionType, inputs: int) -> Iterator[tuple[str, Any, Any]]:
    """Keyword-only arguments as fields of a dataclass."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise _misdeclared(function, f"an annotation cannot be read: {type(error).__name__}: {error}") from error
    arguments = list(inspect.signature(function).parameters.values())
    own = [each for each in arguments if each.kind is each.KEYWORD_ONLY]
    others = [each for each in arguments if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(others) != inputs or len(others) + len(own) < len(arguments):
        form = "base, models" if inputs == 2 else "models"
        raise _misdeclared(function, "its arguments are others", f"`{function.__name__}({form}, *, PARAMETERS)`")
    for each in own:
        yield _FIELD + each.name, Any, _field(function, each, hints.get(each.name))


def _field(function: FunctionType, argument: inspect.Parameter, hint: Any) -> Any:
    bounds = Bounds()
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        bounds = next((note for note in notes if isinstance(note, Bounds)), bounds)
    per_model = get_origin(hint) is tuple and get_args(hint)[1:] == (...,)
    kind = get_args(hint)[0] if per_model else hint
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and all(isinstance(each, str) for each in choices):
        kind = str
    if kind not in _KINDS:
        raise _misdeclared(function, f"the annotation of `{argument.name}` is no kind of parameter", _ANNOTATIONS)
    return parameter(
        MISSING if argument.default is argument.empty else argument.default,
        doc="",  # the docstring says it
        kind=kind.__name__,
        name=argument.name.rstrip("_"),
        per_model=per_model,
        low=bounds.low,
        high=bounds.high,
        choices=choices,
    )


def _beginning(function: FunctionType) -> Place:
    return Place("", function.__code__.co_filename, function.__code__.co_firstlineno)


def _misdeclared(function: FunctionType, what: str, expected: str | None = None) -> MethodError:
    what = f"`{function.__name__}` cannot be a merge method: {what}"
    return MethodError(what, place=_beginning(function), expected=expected)


class FunctionMethod(Method, ABC):
    """A method that calls a function; :func:`merge_method` makes the classes."""

    function: ClassVar[FunctionType]
    whole: ClassVar[bool]
    arrays: ClassVar[Library]

    def grain(self, shape: tuple[int, ...]) -> int:
        """All entries for functions on whole tensors."""
        return max(1, math.prod(shape)) if self.whole else GRAIN

    def scratch(self, operands: int) -> int:
        """As much as all that the function is given, and its result, in float64."""
        return 8 * (operands + 1)

    def merge(self, block: Block, stats: Stats) -> Array:
        """The function's result, checked.

        Raises:
            MethodError: the function fails, or returns something else than it should.
        """
        del stats
        shape = block.target.shape if self.whole else (block.rows.shape[1],)
        rows = self._given(block.rows).reshape((block.rows.shape[0], *shape))
        models = rows[1:] if block.based else rows
        inputs = (models,) if self.needs.base == "ignored" else (rows[0] if block.based else None, models)
        values = {each.field.removeprefix(_FIELD): getattr(self, each.field) for each in self.parameters()}
        try:
            result = self.function(*inputs, **values)
        except Exception as error:
            what = f"`{self.name}` failed on `{block.target.name}`: {type(error).__name__}: {error}"
            raise MethodError(what, place=place_in(self.function.__code__.co_filename, error)) from error
        if not self._is_floating(result) or tuple(result.shape) != tuple(shape):
            raise self._refusal(result, shape, block.target.name)
        return self._taken(result.reshape(-1), like=block.rows)

    def _given(self, rows: Array) -> Array:
        """The rows as the function takes them; without a copy, if they are in this process's memory."""
        if self.arrays == "numpy":
            from mergekit.kernels.arrays import host

            shown = host(rows).view()
            shown.flags.writeable = False
            return shown
        import torch

        return torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows

    def _is_floating(self, result: Any) -> bool:
        if self.arrays == "numpy":
            return isinstance(result, np.ndarray | np.generic) and result.dtype.kind == "f"
        import torch

        return isinstance(result, torch.Tensor) and result.is_floating_point()

    def _taken(self, result: Any, like: Array) -> Array:
        """A result in float32, where the rows are."""
        if self.arrays == "torch":
            import torch

            single = result.detach().to(torch.float32)
            return single.cpu().numpy() if isinstance(like, np.ndarray) else single
        with np.errstate(over="ignore"):  # what does not fit is infinite, and found in the output
            entries = np.require(result, np.float32, ("C", "W"))
        if isinstance(like, np.ndarray):
            return entries
        import torch

        return torch.from_numpy(entries).to(like.device)

    def _refusal(self, result: Any, shape: tuple[int, ...], tensor: str) -> MethodError:
        kind = f"{type(result).__module__}.{type(result).__qualname__}".removeprefix("builtins.")
        known = f"{result.dtype} of shape {tuple(result.shape)}" if hasattr(result, "dtype") else "no array"
        library = "NumPy array" if self.arrays == "numpy" else "torch tensor"
        return MethodError(
            f"`{self.name}` returned {known} ({kind}) for `{tensor}`",
            place=_beginning(type(self).function),
            expected=f"a {library} of float32, shape {tuple(shape)}",
        )
