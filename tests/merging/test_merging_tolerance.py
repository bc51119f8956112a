"""Merges of models that differ: every rule for missing tensors and unequal shapes, against float64."""

import json

import pytest
from safetensors.torch import save_file
from tiny_checkpoints import (
    assert_rounded,
    llama_config,
    llama_shapes,
    merge,
    octets,
    random_tensors,
    read_model,
    recipe,
    write_model,
)

from mergekit.errors import IncompatibleModelsError, MissingTensorError, RecipeError

ODD = "model.layers.1.mlp.up_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS = {"a": 1, "b": 2, "c": 3}


@pytest.fixture
def write(tmp_path):
    """Write a model of two layers; returns its tensors."""

    def make(name, without=(), extra=None, **settings):
        config = llama_config(layers=2, **settings)
        shapes = {key: shape for key, shape in llama_shapes(config).items() if key not in without}
        tensors = random_tensors({**shapes, **(extra or {})}, sum(map(ord, name)))
        write_model(tmp_path / name, tensors, config)
        return tensors

    return make


def linear(root, names="abc", **rules):
    return recipe("linear", [(root / name, {"weight": WEIGHTS[name]}) for name in names], **rules)


def deltas(root, names="ab", **rules):
    """Task arithmetic on a base, with weights 0.5 and 0.25."""
    models = [(root / name, {"weight": weight}) for name, weight in zip(names, (0.5, 0.25), strict=True)]
    return recipe("task_arithmetic", models, base_model=str(root / "base"), **rules)


def mean(tensors):
    """The weighted mean of tensors by name of the model, as `linear` has it."""
    total = sum(WEIGHTS[name] for name in tensors)
    return sum(WEIGHTS[name] * tensor.double() for name, tensor in tensors.items()) / total


def with_deltas(base, *others):
    base = base.double()
    return base + sum(weight * (other.double() - base) for weight, other in others)


def told(watch, rule):
    """What is said about a rule, as notice and as warning."""
    return [[text for text in said if text.startswith(f"`{rule}`")] for said in (watch.notices, watch.warnings)]


def left_over(watch):
    return {(entry["model"], name): entry["reason"] for entry in watch.report["left_over"] for name in entry["tensors"]}


def assert_the_rest_is_merged(found, models, average):
    for name, tensor in found.items():
        if name not in (ODD, EMBEDDING, HEAD):
            assert_rounded(tensor, average({who: own[name] for who, own in models.items()}))


# A missing tensor


@pytest.mark.parametrize("lacking", ["a", "b"])
@pytest.mark.parametrize("rule", ["base", "skip"])
def test_a_missing_tensor_without_a_base(lacking, rule, write, tmp_path):
    models = {name: write(name, {ODD} if name == lacking else ()) for name in "abc"}
    watch = merge(linear(tmp_path, on_missing=rule), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert_the_rest_is_merged(found, models, mean)
    having = {name: own[ODD] for name, own in models.items() if name != lacking}
    if rule == "skip":
        assert_rounded(found[ODD], mean(having))
        assert left_over(watch) == {}
    elif lacking == "b":
        assert octets(found[ODD]) == octets(models["a"][ODD])
        assert left_over(watch) == {(2, ODD): f"`on_missing: base`: the output has that of {tmp_path / 'a'}"}
    else:
        assert ODD not in found
        reason = f"`on_missing: base`: {tmp_path / 'a'} has no such tensor"
        assert left_over(watch) == {(1, ODD): reason, (2, ODD): reason}
    notices, warnings = told(watch, f"on_missing: {rule}")
    assert len(notices) == 1
    assert warnings == []
    assert f"1 tensor {'left out' if (rule, lacking) == ('base', 'a') else ''}" in notices[0]
    assert f"`{ODD}`" in notices[0]
    assert watch.report["rules"] == [{"rule": f"on_missing: {rule}", "tensors": [ODD]}]


@pytest.mark.parametrize("rule", ["base", "skip"])
def test_a_tensor_that_a_model_beside_the_base_lacks(rule, write, tmp_path):
    base, a = write("base"), write("a")
    write("b", {ODD})
    watch = merge(deltas(tmp_path, on_missing=rule), tmp_path / "out")
    found = read_model(tmp_path / "out")
    if rule == "base":
        assert octets(found[ODD]) == octets(base[ODD])
        assert left_over(watch).keys() == {(1, ODD)}
    else:
        assert_rounded(found[ODD], with_deltas(base[ODD], (0.5, a[ODD])))
        assert left_over(watch) == {}


def test_a_tensor_that_the_base_lacks(write, tmp_path):
    write("base", {ODD})
    write("a")
    write("b")
    watch = merge(deltas(tmp_path, on_missing="base"), tmp_path / "out")
    assert ODD not in read_model(tmp_path / "out")
    assert left_over(watch).keys() == {(1, ODD), (2, ODD)}
    with pytest.raises(RecipeError) as caught:
        merge(deltas(tmp_path, on_missing="skip"), tmp_path / "none")
    (problem,) = caught.value.problems
    assert problem.what == (
        f"`on_missing: skip`: 1 tensor cannot be merged from {tmp_path / 'a'} and {tmp_path / 'b'} alone: "
        f"task_arithmetic needs at least 1 model and a base: `{ODD}`"
    )
    assert problem.place.path == "on_missing"
    assert problem.hint.startswith("`on_missing: base`")


@pytest.mark.parametrize("lacking", ["base", "a"])
def test_one_model_that_is_left_is_taken_as_it_is(lacking, write, tmp_path):
    models = {name: write(name, {ODD} if name == lacking else ()) for name in ("base", "a")}
    text = recipe(
        "slerp",
        [tmp_path / "base", tmp_path / "a"],
        base_model=str(tmp_path / "base"),
        parameters={"t": 0.5},
        on_missing="skip",
    )
    watch = merge(text, tmp_path / "out")
    left = "a" if lacking == "base" else "base"
    assert octets(read_model(tmp_path / "out")[ODD]) == octets(models[left][ODD])
    assert told(watch, "on_missing: skip") == [
        [],
        [
            f"`on_missing: skip`: 1 tensor taken unchanged from {tmp_path / left}, the only model left (slerp needs "
            f"1 model and a base): `{ODD}`"
        ],
    ]


# Unequal shapes


@pytest.mark.parametrize("other", ["a", "b"])
@pytest.mark.parametrize("rule", ["base", "skip", "crop"])
@pytest.mark.parametrize("shape", [(64, 32), (48, 20), (40, 36), (1, 1)])
def test_unequal_shapes_without_a_base(other, rule, shape, write, tmp_path):
    models = {name: write(name, extra={ODD: shape} if name == other else None) for name in "abc"}
    watch = merge(linear(tmp_path, on_shape_mismatch=rule), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert_the_rest_is_merged(found, models, mean)
    odd = {name: own[ODD] for name, own in models.items()}
    alike = {name: own for name, own in odd.items() if own.shape == odd["a"].shape}
    if rule == "base":
        assert octets(found[ODD]) == octets(odd["a"])
        assert left_over(watch).keys() == {(1, ODD), (2, ODD)}
    elif rule == "skip":
        assert_rounded(found[ODD], mean(alike))
        assert left_over(watch).keys() == {("abc".index(name), ODD) for name in odd.keys() - alike.keys()}
    else:
        rows, columns = min(shape[0], 48), min(shape[1], 32)
        assert_rounded(found[ODD], mean({name: own[:rows, :columns] for name, own in odd.items()}))
        assert left_over(watch) == {}
    notices, warnings = told(watch, f"on_shape_mismatch: {rule}")
    assert (len(notices), len(warnings)) == ((0, 1) if rule == "crop" else (1, 0))
    if rule == "crop":
        assert f"1 tensor cut to [{rows}, {columns}] from [" in warnings[0]
        assert f"{list(shape)} in {tmp_path / other}" in warnings[0]
    assert watch.report["rules"] == [{"rule": f"on_shape_mismatch: {rule}", "tensors": [ODD]}]


@pytest.mark.parametrize("rule", ["base", "skip", "crop"])
def test_another_shape_beside_a_base(rule, write, tmp_path):
    base, a = write("base"), write("a")
    b = write("b", extra={ODD: (50, 20)})
    merge(deltas(tmp_path, on_shape_mismatch=rule), tmp_path / "out")
    found = read_model(tmp_path / "out")[ODD]
    if rule == "base":
        assert octets(found) == octets(base[ODD])
    elif rule == "skip":
        assert_rounded(found, with_deltas(base[ODD], (0.5, a[ODD])))
    else:
        parts = [own[ODD][:48, :20] for own in (base, a, b)]
        assert_rounded(found, with_deltas(parts[0], (0.5, parts[1]), (0.25, parts[2])))


def test_a_base_that_stands_alone_with_its_shape(write, tmp_path):
    base = write("base", extra={ODD: (50, 20)})
    write("a")
    write("b")
    watch = merge(deltas(tmp_path, on_shape_mismatch="skip"), tmp_path / "out")
    assert octets(read_model(tmp_path / "out")[ODD]) == octets(base[ODD])
    assert "the only model left" in told(watch, "on_shape_mismatch: skip")[1][0]
    assert left_over(watch).keys() == {(1, ODD), (2, ODD)}


def test_methods_of_several_passes_see_the_corners(write, tmp_path):
    """TIES of corners is TIES of models that have nothing else."""
    wide = {name: write(name, extra={ODD: (60, 40) if name == "a" else (48, 36)}) for name in ("base", "a", "b")}
    cut = tmp_path / "cut"
    for name, tensors in wide.items():
        small = {key: tensor[:48, :36].contiguous() if key == ODD else tensor for key, tensor in tensors.items()}
        write_model(cut / name, small, llama_config(layers=2))
    for root in (tmp_path, cut):
        settings = {"base_model": str(root / "base"), "on_shape_mismatch": "crop"}
        models = [(root / name, {"weight": 1, "density": 0.4}) for name in "ab"]
        merge(recipe("ties", models, **settings), root / "out")
    assert octets(read_model(tmp_path / "out")[ODD]) == octets(read_model(cut / "out")[ODD])


def test_a_computed_tensor_is_cropped(write, tmp_path):
    """The corner of what an adapter makes of a larger matrix."""
    small, large = write("a"), write("b", inner=60)
    thin = random_tensors({"lora_A": (4, 32), "lora_B": (60, 4)}, 5, scale=1.0)
    (tmp_path / "adapter").mkdir()
    stem = f"base_model.model.{ODD.removesuffix('.weight')}"
    tensors = {f"{stem}.{name}.weight": tensor for name, tensor in thin.items()}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    models = [tmp_path / "a", f"{tmp_path / 'b'}+{tmp_path / 'adapter'}"]
    merge(recipe("linear", models, on_shape_mismatch="crop"), tmp_path / "out")
    found = read_model(tmp_path / "out")
    large = {name: tensor.double() for name, tensor in large.items()}
    large[ODD] = large[ODD] + 2 * thin["lora_B"].double() @ thin["lora_A"].double()
    for name, tensor in small.items():
        corner = large[name][tuple(slice(size) for size in tensor.shape)]
        assert_rounded(found[name], (tensor.double() + corner) / 2)


def test_cropped_vocabularies_agree_with_config_json(write, tmp_path):
    models = {name: write(name, rows=rows) for name, rows in (("a", 80), ("b", 64))}
    text = linear(tmp_path, "ab", on_shape_mismatch=[{"filter": "embed_tokens", "value": "crop"}, {"value": "base"}])
    watch = merge(text, tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert_rounded(found[EMBEDDING], mean({name: own[EMBEDDING][:64] for name, own in models.items()}))
    assert octets(found[HEAD]) == octets(models["a"][HEAD])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 64
    assert watch.report["rules"] == [
        {"rule": "on_shape_mismatch: crop", "tensors": [EMBEDDING]},
        {"rule": "on_shape_mismatch: base", "tensors": [HEAD]},
    ]


# Both, and neither


def test_missing_tensors_come_first_and_shapes_of_what_is_left_after(write, tmp_path):
    a = write("a", extra={ODD: (60, 20)})
    write("b", {ODD})
    c = write("c")
    watch = merge(linear(tmp_path, on_missing="skip", on_shape_mismatch="crop"), tmp_path / "out")
    parts = {"a": a[ODD][:48, :20], "c": c[ODD][:48, :20]}
    assert_rounded(read_model(tmp_path / "out")[ODD], mean(parts))
    assert [entry["rule"] for entry in watch.report["rules"]] == ["on_missing: skip", "on_shape_mismatch: crop"]


def test_without_a_rule_that_holds_a_difference_is_an_error(write, tmp_path):
    write("a")
    write("b", {ODD})
    for rules in ({}, {"on_missing": "error"}, {"on_missing": {"filter": "layers.0", "value": "base"}}):
        with pytest.raises(MissingTensorError) as caught:
            merge(linear(tmp_path, "ab", **rules), tmp_path / "out")
        assert "`on_missing: base`" in caught.value.problem.hint
    write("c", extra={ODD: (60, 20)})
    for rules in ({}, {"on_shape_mismatch": "error"}, {"on_missing": "base"}):
        with pytest.raises(IncompatibleModelsError) as caught:
            merge(linear(tmp_path, "ac", **rules), tmp_path / "out")
        assert "`on_shape_mismatch: base`" in caught.value.problem.hint
    assert not (tmp_path / "out").exists()


def test_equal_models_are_merged_the_same_with_rules(write, tmp_path):
    for name in "abc":
        write(name)
    watch = merge(linear(tmp_path, on_missing="skip", on_shape_mismatch="crop"), tmp_path / "ruled")
    merge(linear(tmp_path), tmp_path / "plain")
    ruled, plain = read_model(tmp_path / "ruled"), read_model(tmp_path / "plain")
    assert {name: octets(tensor) for name, tensor in ruled.items()} == {
        name: octets(tensor) for name, tensor in plain.items()
    }
    assert (watch.notices, watch.warnings, watch.report["rules"]) == ([], [], [])
