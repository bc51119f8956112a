"""Merges of tensors in memory: the same as merges of files, for every method, library and dtype."""

import math
import re

import numpy as np
import pytest
import torch
from tiny_checkpoints import octets, read_model

import mergekit
from mergekit import MergeOptions, iter_merged, merge_state_dicts, merge_tensors
from mergekit.errors import (
    BudgetError,
    IncompatibleModelsError,
    MissingTensorError,
    NonFiniteError,
    RecipeError,
    UnsupportedError,
)
from mergekit.methods import METHODS, Bounds, MethodError, PerModel, merge_method

PARAMETERS = {"weight": [0.5, 0.75, 1.25], "density": [0.4, 0.5, 0.6], "t": 0.3, "epsilon": 0.1}
"""Values for whatever a method reads of these; lists are for each model."""


def parameters_of(method, count):
    names = [parameter.name for parameter in method.parameters()]
    listed = {name: value for name, value in PARAMETERS.items() if name in names}
    return {name: value[:count] if isinstance(value, list) else value for name, value in listed.items()}


def count_of(method):
    return 3 if method.needs.most is None else method.needs.most


def recipe_of(method, folder, names, parameters):
    shared = {name: value for name, value in parameters.items() if not isinstance(value, list)}
    entries = []
    for index, name in enumerate(names):
        own = {key: value[index] for key, value in parameters.items() if isinstance(value, list)}
        entries.append({"model": str(folder / name), "parameters": own})
    recipe = {"merge_method": method.name, "models": entries, "parameters": shared}
    return recipe if method.needs.base == "ignored" else {**recipe, "base_model": str(folder / "base")}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_merges_as_it_merges_files(method, models):
    names = "abc"[: count_of(method)]
    parameters = parameters_of(method, len(names))
    recipe = recipe_of(method, models, names, parameters)
    expected = dict(iter_merged(recipe, options=MergeOptions(random_seed=3), framework="torch"))
    base, tensors = read_model(models / "base"), [read_model(models / name) for name in names]
    found = merge_state_dicts(method.name, tensors, base=base, parameters=parameters, seed=3)
    assert list(found) == list(tensors[0])
    assert found.keys() == expected.keys()
    assert all(octets(found[name]) == octets(expected[name]) for name in found)
    name = "model.layers.1.mlp.up_proj.weight"
    parts = [model[name] for model in tensors]
    one = merge_tensors(method, parts, base=base[name], parameters=parameters, name=name, seed=3)
    assert octets(one) == octets(expected[name])


def test_linear_by_its_formula():
    a, b = np.float32([[1, 2], [3, 4]]), np.float32([[5, 5], [5, 5]])
    merged = merge_tensors("linear", [a, b], parameters={"weight": [1, 3]})
    assert np.array_equal(merged, (a + 3 * b) / 4)
    summed = merge_tensors("linear", [a, b], parameters={"weight": (1, 3), "normalize": False})
    assert np.array_equal(summed, a + 3 * b)


def test_one_value_stands_for_all_models():
    base, a, b = np.float32([1, 1]), np.float32([2, 3]), np.float32([1, 5])
    merged = merge_tensors("task_arithmetic", [a, b], base=base, parameters={"weight": 0.5, "lambda": 2})
    assert np.array_equal(merged, base + 2 * 0.5 * ((a - base) + (b - base)))


def test_slerp_takes_the_first_of_two_as_base():
    a, b = np.float32([1, 0]), np.float32([0, 1])
    expected = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    parameters = {"t": np.float64(1 / 3)}
    assert np.allclose(merge_tensors("slerp", [a, b], parameters=parameters), expected)
    assert np.allclose(merge_tensors("slerp", [b], base=a, parameters=parameters), expected)


def test_methods_without_a_base_do_not_look_at_it():
    tensors = [np.float32([1, 2]), np.float32([3, 4])]
    assert merge_tensors("linear", tensors, base=np.float32([9, 9])).tolist() == [2, 3]


NUMPY = [np.float16, np.float32, np.float64]
TORCH = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", NUMPY)
def test_numpy_stays_numpy(dtype):
    merged = merge_tensors("linear", [np.array([[1, 2]], dtype), np.array([[2, 4]], dtype)])
    assert type(merged) is np.ndarray
    assert merged.dtype == dtype
    assert merged.tolist() == [[1.5, 3]]


@pytest.mark.parametrize("dtype", TORCH)
def test_torch_stays_torch(dtype):
    merged = merge_tensors("linear", [torch.tensor([[1, 2]], dtype=dtype), torch.tensor([[2, 4]], dtype=dtype)])
    assert merged.dtype == dtype
    assert merged.device.type == "cpu"
    assert merged.tolist() == [[1.5, 3]]


@pytest.mark.parametrize(
    ("one", "other", "wide"),
    [
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float64, torch.float64),
    ],
)
def test_dtypes_are_promoted(one, other, wide):
    value = 1.0078125  # exact in bfloat16
    merged = merge_tensors("linear", [torch.tensor([value], dtype=one), torch.tensor([value], dtype=other)])
    assert merged.dtype == wide
    assert merged.tolist() == [value]


def test_the_dtype_of_the_base_counts():
    half = torch.ones(2, dtype=torch.bfloat16)
    assert merge_tensors("task_arithmetic", [half], base=torch.zeros(2)).dtype == torch.float32


def test_rounding_is_once_and_to_nearest():
    thirds = [torch.full((8,), value, dtype=torch.bfloat16) for value in (1.0, 1.0078125, 1.015625)]
    exact = sum(tensor.double() for tensor in thirds) / 3
    assert torch.equal(merge_tensors("linear", thirds), exact.to(torch.bfloat16))


def test_memory_may_lie_in_any_order():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    readonly = a.copy()
    readonly.flags.writeable = False
    for form in (a.T.copy().T, a.astype(">f4"), np.repeat(a, 2, axis=1)[:, ::2], readonly):
        merged = merge_tensors("linear", [form, a])
        assert merged.dtype == np.float32
        assert np.array_equal(merged, a)
    tensor = torch.from_numpy(a)
    for form in (tensor.T.contiguous().T, torch.nn.Parameter(tensor), tensor.repeat_interleave(2, 1)[:, ::2]):
        merged = merge_tensors("linear", [form, tensor])
        assert not merged.requires_grad
        assert torch.equal(merged, tensor)


def test_inputs_stay_as_they_are():
    a, b = np.float32([1, 2]), np.float32([3, 4])
    merge_tensors("linear", [a, b])[:] = 0
    merge_tensors("passthrough", [a])[:] = 0
    assert (a.tolist(), b.tolist()) == ([1, 2], [3, 4])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_shapes_may_be_small(shape):
    ones, threes = np.ones(shape, np.float32), np.full(shape, 3, np.float32)
    merged = merge_tensors("ties", [threes], base=ones)
    assert merged.shape == shape
    assert np.array_equal(merged, threes)
    assert merge_tensors("linear", [torch.ones(shape), torch.ones(shape)]).shape == shape


def test_numbers_of_numpy_are_tensors():
    assert merge_tensors("linear", [np.float32(1), np.float32(2)]) == np.float32(1.5)


def test_large_tensors_are_merged_by_several_workers():
    random = np.random.default_rng(0)
    base, a, b = random.standard_normal((3, 1_500_001), np.float32)
    merged = merge_tensors("task_arithmetic", [a, b], base=base, parameters={"weight": 1})
    assert np.allclose(merged, a.astype(np.float64) + b - base, atol=1e-5)


def test_random_methods_depend_on_name_and_seed():
    base, tensors = np.zeros(1000, np.float32), [np.ones(1000, np.float32)]

    def drawn(**more):
        parameters = {"weight": 1, "density": 0.5}
        return merge_tensors("dare_linear", tensors, base=base, parameters=parameters, **more).tolist()

    assert drawn() == drawn(name="tensor", seed=0)
    assert set(drawn()) == {0, 2}
    assert drawn() != drawn(seed=1)
    assert drawn() != drawn(name="other")


@merge_method(title="Powered", base="optional")
def powered(base, models, *, weight: PerModel = 1.0, power: int = 2, flip: bool = False):
    total = sum(factor * model**power for factor, model in zip(weight, models, strict=True))
    return (-total if flip else total) - (0 if base is None else base)


def test_methods_of_ones_own():
    a, b = np.float32([1, 2]), np.float32([3, 4])
    assert merge_tensors(powered, [a, b], parameters={"weight": [1, 2]}).tolist() == [19, 36]
    assert merge_tensors(powered, [a, b], base=b, parameters={"power": 1.0, "flip": "yes"}).tolist() == [-7, -10]
    with pytest.raises(RecipeError, match="try `power`"):
        merge_tensors(powered, [a], parameters={"pwoer": 3})


def test_integers_are_copied():
    positions = np.arange(5)
    merged = merge_state_dicts("linear", [{"positions": positions}, {"positions": positions.copy()}])
    assert merged["positions"].dtype == np.int64
    assert merged["positions"].tolist() == positions.tolist()
    mask = torch.tensor([True, False])
    assert torch.equal(merge_tensors("task_arithmetic", [mask], base=mask), mask)
    with pytest.raises(IncompatibleModelsError, match=r"int64 and differs between the models\n  at tensors\[0\] and"):
        merge_tensors("linear", [positions, positions + 1])


def test_packed_formats_are_copied_or_refused():
    packed = torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)
    assert octets(merge_tensors("passthrough", [packed])) == octets(packed)
    with pytest.raises(UnsupportedError, match=r"float8_e4m3fn, which .*\n  at .*\n  expected bfloat16, float16"):
        merge_tensors("linear", [packed, packed])
    with pytest.raises(UnsupportedError, match="float32 and int64"):
        merge_tensors("linear", [np.float32([1]), np.int64([1])])
    with pytest.raises(UnsupportedError, match="`tensor` is datetime64"):
        merge_tensors("linear", [np.array(["2024-01-01"], "datetime64[D]")])


ONE = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("method", "count", "parameters", "expected"),
    [
        ("tyes", 1, {}, "unknown merge method `tyes`\n  at method\n  expected linear, .*\n  try `ties`"),
        ("ties", 1, {"wieght": 1}, "unknown parameter `wieght`\n  at parameters\n  expected one of .*\n  try `weight`"),
        ("ties", 1, {"t": 1}, "unknown parameter `t`\n  at parameters\n  expected one of weight, [^\n]*$"),
        ("arcee_fusion", 1, {"t": 1}, "unknown parameter `t`\n  at parameters\n  expected no parameters"),
        ("slerp", 1, {}, "slerp needs the parameter `t`\n  at parameters\n  try `{'t': VALUE}`"),
        (
            "slerp",
            1,
            {"t": [0.1]},
            "`t` is one value for all models, and cannot differ between them\n  at parameters.t",
        ),
        ("ties", 2, {"weight": [1, 2, 3]}, "`weight` has 3 values for 2 models\n  at parameters.weight\n"),
        ("ties", 2, {"weight": [1, "x"]}, r"`weight`: `x` is not a number\n  at parameters.weight\[1\]\n"),
        ("ties", 2, {"density": 2}, "`density` is 2, out of range\n  at parameters.density\n  expected 0 to 1"),
        (
            "ties",
            2,
            {"density": np.array([0.5, -1])},
            r"`density` is -1.0, out of range\n  at parameters.density\[1\]\n",
        ),
        ("dare_ties", 1, {"rescale_norm": "l3"}, "`rescale_norm` is l3, out of range\n  at .*\n  expected none or l1"),
        ("ties", 1, {"weight": None}, "`weight`: a `NoneType` is no value\n  at parameters.weight\n"),
        ("linear", 2, {"weight": [1, -1]}, "the weights add up to 0 and cannot be normalized\n  at parameters"),
        ("linear", 0, {}, "linear does not merge 0 models\n  expected at least 1"),
        ("slerp", 3, {"t": 0.5}, "slerp does not merge 3 models besides the base\n  expected 1 model and a base"),
    ],
)
def test_mistakes(method, count, parameters, expected):
    with pytest.raises(RecipeError, match=expected):
        merge_tensors(method, [ONE] * count, base=ONE, parameters=parameters)


def test_a_base_that_is_needed():
    with pytest.raises(
        RecipeError, match=r"ties needs a base model\n  at base\n  expected at least 1 models? and a base"
    ):
        merge_tensors("ties", [ONE, ONE])


def test_all_mistakes_are_in_one_error():
    with pytest.raises(RecipeError) as error:
        merge_tensors("slerp", [ONE] * 3, parameters={"T": 1, "weight": 2})
    assert len(error.value.problems) == 5
    assert isinstance(error.value, mergekit.MergekitError)


def test_what_is_no_method():
    for method in (len, int, METHODS["passthrough"](scale=(1.0,))):
        with pytest.raises(MethodError, match="expected the name of a method, or the class of one"):
            merge_tensors(method, [ONE])


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match="a `list` is neither a NumPy array nor a torch tensor"):
        merge_tensors("linear", [[1, 2]])
    with pytest.raises(TypeError, match="cannot be merged with each other"):
        merge_tensors("linear", [ONE, torch.ones(3)])


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "has the layout torch.sparse_coo"),
        (torch.empty(3, device="meta"), "is on the device `meta`"),
    ],
)
def test_tensors_without_entries(tensor, what):
    expected = f"`tensor` {what}\n  expected a tensor with all its entries in memory"
    with pytest.raises(UnsupportedError, match=re.escape(expected)):
        merge_tensors("linear", [torch.ones(tensor.shape), tensor])


@pytest.mark.parametrize("parameters", [[1], [], "weight"])
def test_parameters_are_a_mapping(parameters):
    with pytest.raises(TypeError, match=r"`parameters` is a `.*`: expected a mapping of names to values"):
        merge_tensors("linear", [ONE, ONE], parameters=parameters)


@pytest.mark.parametrize("seed", [1.0, True, "1", None, np.float32(1)])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(TypeError, match=r"`seed` is .*: expected a whole number"):
        merge_tensors("linear", [ONE, ONE], seed=seed)


def test_seeds_of_numpy_are_those_of_python():
    def drawn(seed):
        parameters = {"weight": 1, "density": 0.5}
        return merge_tensors("dare_linear", [np.ones(99)], base=np.zeros(99), parameters=parameters, seed=seed)

    assert np.array_equal(drawn(np.int16(-7)), drawn(-7))
    assert not np.array_equal(drawn(7), drawn(-7))


def test_memory_can_be_limited():
    assert merge_tensors("linear", [ONE, ONE], max_memory="1 GiB").tolist() == [1, 1, 1]
    assert merge_state_dicts("linear", [{"x": ONE}, {"x": ONE}], max_memory=10**9)["x"].tolist() == [1, 1, 1]
    with pytest.raises(BudgetError, match=r"try `--max-memory \d+MB`, or `max_memory=\"\d+MB\"` in Python") as caught:
        merge_tensors("linear", [ONE, ONE], max_memory="1MB")
    enough = re.search('"(.*)"', caught.value.problem.hint)[1]
    assert merge_tensors("linear", [ONE, ONE], max_memory=enough).tolist() == [1, 1, 1]
    for wrong in ("x", 0, "0"):
        with pytest.raises(ValueError, match=r"`max_memory` is 0: expected at least 1|`max_memory`: `x` is not a size"):
            merge_state_dicts("linear", [{"x": ONE}], max_memory=wrong)


def test_shapes_must_agree():
    with pytest.raises(IncompatibleModelsError, match=r"`tensor` is \[2, 3\] in base and \[3, 2\] in tensors\[0\]"):
        merge_tensors("ties", [np.ones((3, 2))], base=np.ones((2, 3)))


def test_names_must_agree():
    a, b = {"x": ONE, "y": ONE}, {"x": ONE}
    with pytest.raises(MissingTensorError, match=r"models\[1\] has no `y`\n"):
        merge_state_dicts("linear", [a, b])
    with pytest.raises(MissingTensorError, match=r"base has no `x` and 1 more"):
        merge_state_dicts("task_arithmetic", [a], base={"z": ONE, "w": ONE})
    with pytest.raises(MissingTensorError, match=r"models\[0\] has no `y`\n"):
        merge_state_dicts("linear", [b, a])


def test_what_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match=r"1 of 3 entries of `tensor` are .*\n  at tensors\[0\], tensors\[1\]"):
        merge_tensors("linear", [np.float32([1, np.nan, 2]), ONE])


def test_remarks_are_warnings():
    parameters = {"weight": 1, "density": 0.99, "epsilon": 0.3}
    with pytest.warns(UserWarning, match="epsilon") as caught:
        merge_tensors("della", [np.ones((4, 4), np.float32)], base=np.zeros((4, 4), np.float32), parameters=parameters)
    assert caught[0].filename == __file__


def test_modules_of_torch():
    torch.manual_seed(0)
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    merged = merge_state_dicts("linear", [a.state_dict(), b.state_dict()])
    assert list(merged) == ["weight", "bias"]
    a.load_state_dict(merged)
    assert torch.equal(a.weight, merged["weight"])


def test_models_may_be_empty():
    assert merge_state_dicts("linear", [{}, {}]) == {}


def test_bounds_of_ones_own():
    from typing import Annotated

    @merge_method(title="Shrunk", base="ignored")
    def shrunk(models, *, share: Annotated[float, Bounds(0, 1)]):
        return share * models[0]

    assert merge_tensors(shrunk, [ONE], parameters={"share": 0.5}).tolist() == [0.5] * 3
    with pytest.raises(RecipeError, match=r"`share` is 2, out of range\n  at parameters\.share\n  expected 0 to 1"):
        merge_tensors(shrunk, [ONE], parameters={"share": 2})
