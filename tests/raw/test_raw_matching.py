"""Tensors that are not alike in all checkpoints: O2 of the acceptance checks, and what else may differ."""

import pytest
import torch
from raw_samples import merge, network, numbers, planned, recipe, result, write

from mergekit.errors import IncompatibleModelsError, MissingTensorError, RecipeError


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints; each has a tensor that the other lacks."""
    a, b = network(1), network(2)
    a["only.a"], b["only.b"] = numbers(7, 3), numbers(8, 3)
    return a, b, [write(tmp_path / "a.safetensors", a), write(tmp_path / "b.pt", b)]


def test_o2_union(pair, tmp_path):
    a, b, files = pair
    report = merge(recipe("linear", files, each=[{"weight": 1}, {"weight": 3}]), tmp_path / "out", "union")
    merged = result(tmp_path / "out")
    assert merged.keys() == a.keys() | b.keys()
    assert torch.equal(merged["only.a"], a["only.a"])  # weight 1 of 1: renormalised over those that have it
    assert torch.equal(merged["only.b"], b["only.b"])
    wanted = (a["head.weight"].double() + 3 * b["head.weight"].double()) / 4
    assert torch.allclose(merged["head.weight"].double(), wanted, rtol=0, atol=1e-6)
    assert "2 tensors are not in all checkpoints and merged from the rest: `only.a`, `only.b`" in report["notices"]
    assert report["left_over"] == []


def test_o2_union_renormalises_over_those_that_have_the_tensor(pair, tmp_path):
    a, _, files = pair
    c = write(tmp_path / "c.bin", {"only.a": numbers(9, 3), **network(3)})
    each = [{"weight": 1}, {"weight": 2}, {"weight": 4}]
    merge(recipe("linear", [*files, c], each=each), tmp_path / "out", "union")
    wanted = (a["only.a"].double() + 4 * numbers(9, 3).double()) / 5
    assert torch.allclose(result(tmp_path / "out")["only.a"].double(), wanted, rtol=0, atol=1e-6)


def test_o2_intersection(pair, tmp_path):
    a, _, files = pair
    report = merge(recipe("linear", files), tmp_path / "out", "intersection")
    assert result(tmp_path / "out").keys() == a.keys() - {"only.a"}
    assert report["left_over"] == [
        {"model": 0, "reason": "not in all checkpoints", "tensors": ["only.a"]},
        {"model": 1, "reason": "not in all checkpoints", "tensors": ["only.b"]},
    ]
    assert "2 tensors are not in all checkpoints and left out: `only.a`, `only.b`" in report["notices"]


def test_o2_neither_names_what_differs_and_the_flags(pair, tmp_path):
    _, b, files = pair
    write(files[1], b | {f"more.{number}": numbers(number, 2) for number in range(4)})
    with pytest.raises(MissingTensorError) as caught:
        merge(recipe("linear", files), tmp_path / "out")
    problem = caught.value.problem
    assert problem.what.startswith(f"6 tensors are not in all checkpoints: `only.a` (not in {files[1]})")
    assert problem.what.endswith("; and 3 more")
    assert "--tensor-union" in problem.hint
    assert "--tensor-intersection" in problem.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "linear"])
def test_o2_a_tensor_of_the_base_alone_stays_under_union(tmp_path, method):
    base, fine = network(1), network(2)
    base["only.base"] = numbers(5, 6)
    files = [write(tmp_path / "base.pt", base), write(tmp_path / "fine.pt", fine)]
    parameters = {"weight": 1, "density": 0.5} if "ties" in method else {"weight": 1}
    text = recipe(method, files[1:], base=files[0], parameters=parameters)
    report = merge(text, tmp_path / "out", "union")
    assert torch.equal(result(tmp_path / "out")["only.base"], base["only.base"])
    assert "1 tensor is not in all checkpoints and taken from a single one: `only.base`" in report["notices"]


def test_o2_a_tensor_of_the_base_alone_is_an_error_without_a_flag(tmp_path):
    files = [write(tmp_path / "base.pt", {**network(1), "x": numbers(1, 2)}), write(tmp_path / "b.pt", network(2))]
    with pytest.raises(MissingTensorError, match="1 tensor is not in all"):
        merge(recipe("task_arithmetic", files[1:], base=files[0], parameters={"weight": 1}), tmp_path / "out")


def test_a_tensor_of_one_model_that_the_base_lacks_is_taken_as_it_is(tmp_path):
    files = [write(tmp_path / "base.pt", network(1)), write(tmp_path / "b.pt", {**network(2), "x": numbers(3, 4)})]
    text = recipe("slerp", files[1:], base=files[0], parameters={"t": 0.3})
    report = merge(text, tmp_path / "out", "union")
    assert torch.equal(result(tmp_path / "out")["x"], numbers(3, 4))
    assert report["notices"] == ["1 tensor is not in all checkpoints and taken from a single one: `x`"]


def test_a_tensor_of_several_models_that_the_base_lacks_is_refused(tmp_path):
    extra = {"x": numbers(3, 4), "y": numbers(4, 4)}
    files = [write(tmp_path / f"{name}.pt", {**network(1), **extra}) for name in "ab"]
    base = write(tmp_path / "base.pt", network(1))
    with pytest.raises(MissingTensorError, match=r"2 tensors are in too few checkpoints for ties: `x` \(not in .*base"):
        merge(recipe("ties", files, base=base, parameters={"weight": 1, "density": 1}), tmp_path / "out", "union")


def test_a_base_that_the_method_ignores_is_warned_of(tmp_path):
    files = [write(tmp_path / f"{name}.pt", network(seed)) for seed, name in enumerate("ab")]
    report = merge(recipe("linear", files[1:], base=files[0]), tmp_path / "out")
    [warning] = report["warnings"]
    assert warning["what"] == "`base_model` has no effect: linear does not compare with a base"
    assert all(torch.equal(tensor, network(1)[name]) for name, tensor in result(tmp_path / "out").items())


INTEGERS = {
    "int64 scalar": torch.tensor(7),
    "int8": torch.arange(5, dtype=torch.int8),
    "bool": torch.tensor([[True, False], [False, True]]),
}


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_o2_equal_integers_are_copied(tmp_path, kind, method):
    files = [write(tmp_path / f"{seed}.pt", {**network(seed), "steps": INTEGERS[kind]}) for seed in (1, 2)]
    merge(recipe(method, files, parameters={"t": 0.5} if method == "slerp" else None), tmp_path / "out")
    copied = result(tmp_path / "out")["steps"]
    assert copied.dtype == INTEGERS[kind].dtype
    assert torch.equal(copied, INTEGERS[kind])


def unequal(tmp_path):
    return [
        write(tmp_path / f"{seed}.pt", {**network(seed), "n.steps": torch.tensor(seed), "n.mask": torch.tensor(True)})
        for seed in (1, 2)
    ]


def test_o2_unequal_integers_are_named(tmp_path):
    files = unequal(tmp_path)
    write(files[0], {**torch.load(files[0]), "n.mask": torch.tensor(False)})
    with pytest.raises(IncompatibleModelsError) as caught:
        planned(recipe("linear", files))
    assert "differ between the checkpoints: `n.steps`, `n.mask`" in caught.value.problem.what
    assert "--integers base" in caught.value.problem.hint


def test_o2_unequal_integers_of_the_base(tmp_path):
    files = unequal(tmp_path)
    report = merge(recipe("linear", files), tmp_path / "first", integers="base")
    assert result(tmp_path / "first")["n.steps"] == 1
    assert {
        "model": 1,
        "reason": f"whole numbers are taken from {files[0]}",
        "tensors": ["n.steps", "n.mask"],
    } in report["left_over"]
    text = recipe("task_arithmetic", files[:1], base=files[1], parameters={"weight": 1})
    merge(text, tmp_path / "base", integers="base")
    assert result(tmp_path / "base")["n.steps"] == 2


def test_large_integers_are_compared_while_merging(tmp_path):
    large = torch.zeros(2**20 + 8, dtype=torch.int8)
    files = [write(tmp_path / "a.pt", {"codes": large.clone()})]
    large[-3] = 1
    files.append(write(tmp_path / "b.pt", {"codes": large}))
    with pytest.raises(IncompatibleModelsError, match="`codes` holds int8 and differs"):
        merge(recipe("linear", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_of_several_dtypes(tmp_path):
    files = [
        write(tmp_path / "a.pt", {"w": numbers(1, 3), "steps": torch.tensor(3)}),
        write(tmp_path / "b.pt", {"w": numbers(2, 3), "steps": torch.tensor(3.0)}),
    ]
    with pytest.raises(IncompatibleModelsError, match=r"`steps` is int64 in .* and float32 in") as caught:
        planned(recipe("linear", files))
    assert caught.value.problem.hint == "`--integers base`"
    merge(recipe("linear", files), tmp_path / "out", integers="base")
    assert result(tmp_path / "out")["steps"].dtype == torch.int64


def test_shapes_must_be_the_same(tmp_path):
    files = [
        write(tmp_path / "a.pt", network(1)),
        write(tmp_path / "b.pt", network(2) | {"norm.weight": numbers(1, 5)}),
    ]
    with pytest.raises(IncompatibleModelsError, match=r"`norm.weight` is \[4\] in .* and \[5\] in"):
        planned(recipe("linear", files), "union")


def test_nothing_in_common(tmp_path):
    files = [write(tmp_path / f"{name}.pt", {name: numbers(1, 2)}) for name in "ab"]
    with pytest.raises(IncompatibleModelsError, match="no tensor in common"):
        planned(recipe("linear", files), "intersection")


def test_the_order_is_that_of_the_base_then_of_new_names(tmp_path):
    a = {name: numbers(1, 2) for name in ("z", "m", "a")}
    b = {name: numbers(2, 2) for name in ("k", "a", "z", "b")}
    base = {name: numbers(3, 2) for name in ("m", "z", "c")}
    files = [write(tmp_path / f"{name}.pt", tensors) for name, tensors in (("a", a), ("b", b), ("base", base))]
    plan = planned(recipe("linear", files[:2]), "union")
    assert [task.out.name for task in plan.tasks] == ["z", "m", "a", "k", "b"]
    assert [spec.name for spec in plan.shards[0].specs] == ["z", "m", "a", "k", "b"]
    plan = planned(recipe("breadcrumbs", files[:1], base=files[2], parameters={"weight": 1}), "union")
    assert [task.out.name for task in plan.tasks] == ["m", "z", "c", "a"]


def test_prefixes_of_wrappers_are_aligned(tmp_path):
    plain, other = network(1), network(2)
    files = [
        write(tmp_path / "plain.pt", plain),
        write(tmp_path / "ddp.pt", {f"module._orig_mod.{name}": tensor for name, tensor in other.items()}),
    ]
    report = merge(recipe("linear", files), tmp_path / "out")
    merged = result(tmp_path / "out")
    assert merged.keys() == plain.keys()
    assert torch.allclose(merged["conv.weight"], (plain["conv.weight"] + other["conv.weight"]) / 2)
    assert f"{files[1]}: all names are read without `module._orig_mod.`, to be those of {files[0]}" in report["notices"]
    report = merge(recipe("linear", files[::-1]), tmp_path / "back")
    assert all(name.startswith("module._orig_mod.") for name in result(tmp_path / "back"))
    assert f"with `module._orig_mod.` before them, to be those of {files[1]}" in report["notices"][0]


def test_a_prefix_that_only_some_names_have_is_part_of_them(tmp_path):
    files = [
        write(tmp_path / "a.pt", {"w": numbers(1, 2)}),
        write(tmp_path / "b.pt", {"module.w": numbers(2, 2), "v": numbers(3, 2)}),
    ]
    plan = planned(recipe("linear", files), "union")
    assert [task.out.name for task in plan.tasks] == ["w", "module.w", "v"]


def test_a_missing_checkpoint_is_a_mistake_of_the_recipe(tmp_path):
    write(tmp_path / "model_a.pt", network(1))
    with pytest.raises(RecipeError) as caught:
        planned(recipe("linear", [tmp_path / "modle_a.pt", tmp_path / "model_a.pt"]))
    [problem] = caught.value.problems
    assert problem.what == f"{tmp_path / 'modle_a.pt'}: there is no such file or folder"
    assert problem.hint == f"`{tmp_path / 'model_a.pt'}`"
    assert (problem.place.path, problem.place.line) == ("models[0].model", 3)


def test_rules_for_shapes_are_those_of_other_recipes(tmp_path):
    files = [
        write(tmp_path / "a.pt", network(1)),
        write(tmp_path / "b.pt", network(2) | {"norm.weight": numbers(1, 5)}),
    ]
    report = merge(recipe("linear", files, on_shape_mismatch="base"), tmp_path / "out")
    assert torch.equal(result(tmp_path / "out")["norm.weight"], network(1)["norm.weight"])
    assert [entry["rule"] for entry in report["rules"]] == ["on_shape_mismatch: base"]
    assert [(entry["model"], entry["tensors"]) for entry in report["left_over"]] == [(1, ["norm.weight"])]


@pytest.mark.parametrize("names", ["union", "intersection"])
def test_the_report_lists_what_a_flag_was_needed_for(pair, tmp_path, names):
    report = merge(recipe("linear", pair[2]), tmp_path / "out", names)
    assert report["rules"] == [{"rule": f"--tensor-{names}", "tensors": ["only.a", "only.b"]}]
