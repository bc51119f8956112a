"""Merges of tensors that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.api.arguments import method_class, prepared, takes_first_as_base
from mergekit.api.arrays import Array, Library, library_of
from mergekit.api.memory import HeldTensors, merger
from mergekit.api.numbers import size, whole_number
from mergekit.checkpoint import Extent, Stored
from mergekit.engine import open_device
from mergekit.errors import IncompatibleModelsError, MissingTensorError
from mergekit.methods import Method
from mergekit.plan import Memory, Operand, TensorTask
from mergekit.plan.memory import fit_memory
from mergekit.plan.tensors import tensor_task
from mergekit.plan.views import Pieces


def merge_tensors(
    method: str | type[Method],
    tensors: Sequence[Array],
    *,
    base: Array | None = None,
    parameters: Mapping[str, Any] | None = None,
    name: str = "tensor",
    seed: int = 0,
    max_memory: int | str | None = None,
) -> Array:
    """Merge the same tensor of several models in memory.

    The result is bit for bit what a merge of whole models would write for this tensor: arithmetic is float32, rounded
    once, and if the dtypes differ, the result has the widest (float32 for float16 with bfloat16). Integers must be
    the same in all, and are copied. Nothing flows back through the merge to tensors that require gradients.

    Parameters:
        method: its name in recipes, or the class of a method, such as :func:`mergekit.methods.merge_method` makes of a
            function.
        tensors: of the models, in their order: NumPy arrays or torch tensors of one shape.
        base: what methods on task vectors compare with; methods that have no base do not look at it. Methods on a
            base and one model take the first of two tensors if it is not given.
        parameters: by the names that recipes use. Those that every model has its own value of may be lists, in the
            order of `tensors`; one value stands for all.
        name: of the tensor; random methods depend on it.
        seed: of random methods.
        max_memory: bytes that the process may take beside the tensors, or text such as "8GB"; None for a quarter of the
            machine's memory.

    Returns:
        The merged tensor, of the same library, on the device of the first.

    Raises:
        RecipeError: the method or a parameter is unknown, missing or wrong, or the number of models is.
        IncompatibleModelsError: shapes differ, or integers do.
        MethodError: a method that did not come with mergekit cannot be loaded, or fails.
        UnsupportedError: the dtype cannot be merged, or a tensor of torch is sparse or on the device "meta".
        BudgetError: the merge does not fit into `max_memory`.
        NonFiniteError: the result holds NaN or infinity.
        TypeError: what is given is no tensor, or tensors of two libraries; `parameters`, `seed` or `max_memory` is
            something else than it should be.
        ValueError: `max_memory` is no size, or 0.

    Example:
        >>> import numpy as np
        >>> de, es = np.float16([1, 2, 3]), np.float16([3, 2, 1])
        >>> merge_tensors("linear", [de, es], parameters={"weight": [3, 1]})
        array([1.5, 2. , 2.5], dtype=float16)
        >>> merge_tensors("linear", [de, es], parameters={"wieght": [3, 1]})
        Traceback (most recent call last):
        ...
        mergekit.errors.RecipeError: unknown parameter `wieght`
          at parameters
          expected one of weight, normalize
          try `weight`
    """
    models = [{name: tensor} for tensor in tensors]
    based = None if base is None else {name: base}
    return _merged(method, models, based, parameters, seed, max_memory, "tensors")[name]


def merge_state_dicts(
    method: str | type[Method],
    models: Sequence[Mapping[str, Array]],
    *,
    base: Mapping[str, Array] | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_memory: int | str | None = None,
) -> dict[str, Array]:
    """Merge models in memory, tensor by tensor with :func:`merge_tensors`.

    Parameters:
        method: its name in recipes, or the class of a method.
        models: tensors by name, such as ``model.state_dict()``; all with the same names.
        base: what methods on task vectors compare with; see :func:`merge_tensors`.
        parameters: by the names that recipes use; see :func:`merge_tensors`.
        seed: of random methods.
        max_memory: bytes that the process may take beside the models; see :func:`merge_tensors`.

    Returns:
        The merged tensors in the order of the first model.

    Raises:
        MissingTensorError: a model lacks a tensor that another one has.
        MergekitError, TypeError, ValueError: as :func:`merge_tensors`.

    Example:
        >>> import numpy as np
        >>> de, es = {"norm": np.float32([1, 1])}, {"norm": np.float32([3, 2])}
        >>> merge_state_dicts("slerp", [de, es], parameters={"t": 0})
        {'norm': array([1., 1.], dtype=float32)}
    """
    return _merged(method, models, base, parameters, seed, max_memory, "models")


@dataclass(frozen=True, slots=True)
class _Input:
    """A model in memory, and what messages call it."""

    label: str
    tensors: Mapping[str, Array]


def _merged(
    method: str | type[Method],
    models: Sequence[Mapping[str, Array]],
    base: Mapping[str, Array] | None,
    parameters: Mapping[str, Any] | None,
    seed: int,
    max_memory: int | str | None,
    label: str,
) -> dict[str, Array]:
    seed = whole_number("seed", seed)
    limit = None if max_memory is None else size("max_memory", max_memory, least=1)
    chosen = method_class(method)
    inputs = [_Input(f"{label}[{index}]", tensors) for index, tensors in enumerate(models)]
    based = takes_first_as_base(chosen, len(inputs))
    if base is not None and chosen.needs.base != "ignored":
        inputs.insert(0, _Input("base", base))
        based = True
    made = prepared(chosen, {} if parameters is None else parameters, len(inputs) - based, based)
    names = list(models[0])
    _refuse_missing(names, inputs)
    library = library_of(each.tensors[name] for each in inputs for name in names)
    tasks = [_task(name, inputs, library, made, based, seed) for name in names]
    return dict(zip(names, _carried_out(tasks, inputs, library, limit), strict=True))


def _refuse_missing(names: Sequence[str], inputs: Sequence[_Input]) -> None:
    wanted = dict.fromkeys([*names, *(name for each in inputs for name in each.tensors)])
    for each in inputs:
        missing = [name for name in wanted if name not in each.tensors]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            what = f"{each.label} has no `{missing[0]}`{more}"
            raise MissingTensorError(what, expected="the same names in all models")


def _task(name: str, inputs: Sequence[_Input], library: Library, method: Method, based: bool, seed: int) -> TensorTask:
    specs = [library.spec(name, each.tensors[name]) for each in inputs]
    operands = tuple(
        Operand(index, Pieces.of(Stored(spec, Extent(Path(each.label), 0, spec.nbytes))))
        for index, (spec, each) in enumerate(zip(specs, inputs, strict=True))
    )
    if len({spec.shape for spec in specs}) > 1:
        shapes = " and ".join(f"{list(spec.shape)} in {each.label}" for spec, each in zip(specs, inputs, strict=True))
        raise IncompatibleModelsError(f"`{name}` is {shapes}", expected="the same shape in all models")
    return tensor_task(name, method, operands, based, seed=seed, places=[each.label for each in inputs])


def _memory(tasks: Sequence[TensorTask], limit: int | None) -> Memory:
    """Buffers, and no more workers than the largest tensor has stripes."""
    rows = max((len(task.operands) for task in tasks), default=1)
    grain = max((task.target.grain for task in tasks if task.copied is None), default=1)
    scratch = max((task.method.scratch(len(task.operands)) for task in tasks), default=0)
    memory = fit_memory(rows, limit=limit, grain=grain, scratch=scratch)
    stripes = max((-(-task.out.count // memory.stripe) for task in tasks), default=1)
    return replace(memory, workers=max(1, min(memory.workers, stripes)))


def _carried_out(
    tasks: Sequence[TensorTask], inputs: Sequence[_Input], library: Library, limit: int | None
) -> Iterator[Array]:
    held = HeldTensors()
    with merger(_memory(tasks, limit), held, open_device(None)) as merge:
        for task in tasks:
            arrays = [each.tensors[task.out.name] for each in inputs]
            for each, array in zip(inputs, arrays, strict=True):
                held.contents[Path(each.label)] = library.octets(array)
            yield library.beside(library.array(merge(task), task.out.dtype, task.out.shape), arrays[0])
