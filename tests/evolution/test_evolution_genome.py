"""E1 and E2: what varies, where it begins, and the recipes that values stand for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergekit.api.options import MergeOptions
from mergekit.config import rendered
from mergekit.errors import RecipeError
from mergekit.evolution.preparing import prepare
from mergekit.methods import METHODS
from mergekit.plan import plan_merge


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch, examples):
    monkeypatch.chdir(examples)


def configuration(method, models=("de", "es"), base="base", **others):
    genome = {"merge_method": method, "models": [f"models/{name}" for name in models], **others}
    if base:
        genome["base_model"] = f"models/{base}"
    return rendered({"genome": genome, "tasks": ["own_task"]})


def drafted(method, *args, **others):
    return prepare(configuration(method, *args, **others), "e.yml", MergeOptions())[1]


@pytest.mark.parametrize(
    ("method", "parameters", "start"),
    [
        ("linear", 1, [0.5, 0.5]),
        ("task_arithmetic", 1, [0.5, 0.5]),
        ("ties", 2, [0.5, 1, 0.5, 1]),
        ("dare_ties", 2, [0.5, 1, 0.5, 1]),
        ("slerp", 1, [0.5, 0.5]),
    ],
)
def test_e1_the_start_is_equal_weights_and_ones(method, parameters, start):
    base = "base" if METHODS[method].needs.base == "required" and method != "slerp" else None
    genome = drafted(method, base=base)
    assert list(genome.start) == start
    grouped = drafted(method, base=base, layer_granularity=2)
    assert len(grouped.genes) == 2 * 2 * parameters


def test_e1_genes_are_in_the_order_group_model_filter_parameter():
    genome = drafted("ties", layer_granularity=2, filters=["mlp", "self_attn"])
    found = [(gene.group, gene.model, gene.filter, gene.parameter.name) for gene in genome.genes]
    expected = [
        (group, model, each, name)
        for group in range(2)
        for model in range(2)
        for each in ("mlp", "self_attn", None)
        for name in ("weight", "density")
    ]
    assert found == expected
    assert len({gene.name for gene in genome.genes}) == len(found)


def test_e1_slices_with_filters():
    genome = drafted("ties", layer_granularity=2, filters=["mlp"])
    recipe = genome.decode([index / 100 for index in range(16)])
    assert recipe["slices"][1]["sources"] == [
        {
            "model": "models/de",
            "layer_range": [2, 4],
            "parameters": {
                "weight": [{"filter": "mlp", "value": 0.08}, {"value": 0.10}],
                "density": [{"filter": "mlp", "value": 0.09}, {"value": 0.11}],
            },
        },
        {
            "model": "models/es",
            "layer_range": [2, 4],
            "parameters": {
                "weight": [{"filter": "mlp", "value": 0.12}, {"value": 0.14}],
                "density": [{"filter": "mlp", "value": 0.13}, {"value": 0.15}],
            },
        },
        {"model": "models/base", "layer_range": [2, 4]},
    ]
    assert [piece["sources"][0]["layer_range"] for piece in recipe["slices"]] == [[0, 2], [2, 4]]


def test_e1_smooth_values_are_gradients():
    genome = drafted("ties", layer_granularity=2, smooth=True, filters=["mlp"])
    recipe = genome.decode([index / 100 for index in range(16)])
    assert "slices" not in recipe
    assert recipe["models"][0]["parameters"]["weight"] == [
        {"filter": "mlp", "value": [0.0, 0.08]},
        {"value": [0.02, 0.1]},
    ]
    assert recipe["models"][-1] == {"model": "models/base"}
    single = drafted("ties", smooth=True).decode([0.1, 0.2, 0.3, 0.4])
    assert single["models"][1]["parameters"] == {"weight": 0.3, "density": 0.4}


def test_e1_weights_are_folded_and_densities_clamped():
    found = drafted("ties").decode([-0.3, -1.7, 0.4, 0.5])["slices"][0]["sources"]
    assert found[0]["parameters"] == {"weight": 0.3, "density": 1.0}
    negative = drafted("ties", allow_negative_weights=True)
    assert negative.decode([-0.3, -0.7, 0.4, 0.5])["slices"][0]["sources"][0]["parameters"] == {
        "weight": -0.3,
        "density": 0.7,
    }
    assert (negative.genes[0].low, negative.genes[0].high) == (-1, 1)


def test_e1_slerp_merges_the_two_models_with_the_greatest_values():
    genome = drafted("slerp", models=("de", "es", "fr"), base=None)
    (piece,) = genome.decode([0.1, 0.2, -0.3])["slices"]
    assert [source["model"] for source in piece["sources"]] == ["models/es", "models/de"]
    assert piece["base_model"] == "models/es"
    assert piece["parameters"]["t"] == pytest.approx(0.47502, abs=5e-6)
    other = drafted("slerp", models=("de", "es"), base=None)
    written = {**other.space.written, "tokenizer_source": "base"}
    unequal = replace(other, space=replace(other.space, written=written)).decode([2.0, 0.0])
    t = 1 / (1 + math.exp(2))
    weights = [source["parameters"]["weight"] for source in unequal["slices"][0]["sources"]]
    assert weights == pytest.approx([1 - t, t])


def test_values_of_another_number_are_refused():
    with pytest.raises(ValueError, match="3 values for 2 genes"):
        drafted("linear", base=None).decode([1, 2, 3])


@pytest.mark.parametrize(
    ("method", "expected"),
    [("linear", True), ("ties", True), ("dare_ties", True), ("task_arithmetic", False)],
)
def test_e2_what_every_recipe_says(method, expected):
    base = "base" if METHODS[method].needs.base == "required" else None
    recipe = (genome := drafted(method, base=base)).decode(genome.start)
    assert recipe["parameters"] == {"normalize": expected}
    assert recipe["dtype"] == "bfloat16"
    if base:
        assert recipe["slices"][0]["sources"][-1] == {"model": "models/base", "layer_range": [0, 4]}
    other = (genome := drafted(method, base=base, normalize=not expected, dtype="float32")).decode(genome.start)
    assert (other["parameters"]["normalize"], other["dtype"]) == (not expected, "float32")


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "task_arithmetic", "slerp", "breadcrumbs"])
def test_no_recipe_says_what_its_method_does_not_read(method):
    base = "base" if METHODS[method].needs.base == "required" and method != "slerp" else None
    genome = drafted(method, base=base)
    assert plan_merge(rendered(genome.decode(genome.start))).findings.warnings == []


@pytest.mark.parametrize("name", ["normalize", "allow_negative_weights"])
def test_what_has_no_effect_is_warned_of(name):
    text = configuration("slerp", base=None, **{name: True})
    (problem,) = prepare(text, "e.yml", MergeOptions())[2].warnings
    assert problem.what == f"`{name}` has no effect: slerp has no such parameter"
    assert name in text.splitlines()[problem.place.line - 1]


def test_a_model_without_layers_is_searched_as_a_whole_or_not_at_all(tmp_path):
    models = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"table.weight": np.ones((4, 2), np.float32)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}", encoding="utf-8")
        models.append(str(folder))
    genome = {"merge_method": "linear", "models": models}
    with pytest.raises(RecipeError, match="the first model has no layers to group"):
        prepare(rendered({"genome": genome, "tasks": ["t"]}), "e.yml", MergeOptions())
    found = prepare(rendered({"genome": {**genome, "smooth": True}, "tasks": ["t"]}), "e.yml", MergeOptions())[1]
    assert found.start == (0.5, 0.5)


def test_a_base_among_the_models_is_not_added():
    genome = drafted("task_arithmetic", models=("base", "de"))
    assert len(genome.decode(genome.start)["slices"][0]["sources"]) == 2


def test_a_base_is_no_input_of_a_method_without_one():
    genome = drafted("linear")
    recipe = genome.decode(genome.start)
    assert [source["model"] for source in recipe["slices"][0]["sources"]] == ["models/de", "models/es"]
    assert recipe["base_model"] == "models/base"


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("model_stock", "arcee_fusion")])
def test_every_method_with_numbers_can_be_searched(method):
    needs = METHODS[method].needs
    models = ("de", "es")[: needs.most or 2] if method != "slerp" else ("de", "es")
    base = "base" if needs.base == "required" and method != "slerp" else None
    genome = drafted(method, models, base)
    assert all(gene.low <= gene.start <= gene.high for gene in genome.genes)
    own = {parameter.name: parameter for parameter in METHODS[method].parameters()}
    for corner in ("low", "high"):
        values = [getattr(gene, corner) for gene in genome.genes]
        if method not in ("slerp", "linear", "nuslerp", "multislerp"):  # where no weight at all is no merge
            assert len(plan_merge(rendered(genome.decode(values))).tasks) == 38
    assert {gene.parameter.name for gene in genome.genes} <= own.keys()


def test_further_parameters_are_searched_where_they_have_bounds_and_fixed_where_they_have_values():
    genome = drafted(
        "breadcrumbs",
        bounds={"lambda": [0.5, 1.5], "rescale": [False, True], "weight": [0, 1]},
        parameters={"density": 0.9},
    )
    assert [gene.parameter.name for gene in genome.genes] == ["weight", "gamma", "weight", "gamma", "lambda", "rescale"]
    assert [(gene.low, gene.high) for gene in genome.genes if gene.parameter.name == "weight"] == [(0, 1)] * 2
    assert genome.genes[-1].choices == (False, True)
    recipe = genome.decode([0.2, 0.01, 0.4, 0.02, 1.25, True])
    assert recipe["parameters"] == {"density": 0.9}
    assert recipe["slices"][0]["parameters"] == {"lambda": 1.25, "rescale": True}
    assert recipe["slices"][0]["sources"][1]["parameters"] == {"weight": 0.4, "gamma": 0.02}


def test_groups_of_unequal_size():
    genome = drafted("linear", base=None, layer_granularity=[1, 3])
    ranges = [piece["sources"][0]["layer_range"] for piece in genome.decode(genome.start)["slices"]]
    assert ranges == [[0, 1], [1, 4]]


def test_a_random_start_is_within_the_bounds_and_a_function_of_the_seed():
    genome = drafted("ties", bounds={"rescale": [False, True]})
    first, again, other = genome.scattered(3), genome.scattered(3), genome.scattered(4)
    assert first == again != other
    assert all(gene.choices or gene.low <= value <= gene.high for gene, value in zip(genome.genes, first, strict=True))


MISTAKES = {
    "groups": ({"layer_granularity": 3}, "the models have 4 layers, which are not groups of 3", "layer_granularity"),
    "filter": ({"filters": ["mpl"]}, "filter `mpl` matches no tensor", "- mpl"),
    "bounds of nothing": ({"bounds": {"densty": [0, 1]}}, "ties has no parameter `densty`", "densty"),
    "bounds turned": ({"bounds": {"weight": [1, 0]}}, "`weight` goes from a lower to a higher number", "weight"),
    "bounds too far": ({"bounds": {"density": [0, 2]}}, "`density` is 2, out of range", "density"),
    "bounds of words": ({"bounds": {"rescale": [1, 2]}}, "`rescale`: `2` is not true or false", "rescale"),
    "fixed and searched": (
        {"parameters": {"weight": 1}, "bounds": {"weight": [0, 1]}},
        "`weight` is fixed under `parameters`, and cannot be searched",
        "weight",
    ),
    "normalize twice": (
        {"normalize": True, "bounds": {"normalize": [False, True]}},
        "`normalize` is fixed in the genome, and cannot be searched",
        "normalize",
    ),
    "no such key": ({"smoth": True}, "unknown key `smoth` in the genome", "smoth"),
    "no such value": ({"parameters": {"rescale": "mabye"}}, "`rescale`: `mabye` is not true or false", "rescale"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_work_with_their_lines(name):
    others, what, written = MISTAKES[name]
    text = configuration("ties", **others)
    with pytest.raises(RecipeError) as caught:
        prepare(text, "e.yml", MergeOptions())
    (problem,) = caught.value.problems
    assert problem.what == what
    assert written in text.splitlines()[problem.place.line - 1]


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"smooth": True}, "slerp merges two of the models in each group"),
        ({"filters": ["mlp"]}, "slerp merges two of the models in each group"),
        ({"base_model": "models/base"}, "slerp merges two of the models, and the base is none of them"),
        ({"models": ("de",)}, "slerp merges two models"),
    ],
)
def test_what_does_not_go_with_slerp(others, what):
    with pytest.raises(RecipeError, match=what):
        drafted("slerp", others.pop("models", ("de", "es")), None, **others)


def test_a_method_without_numbers_says_how_to_search_it():
    with pytest.raises(RecipeError, match="model_stock has nothing to search"):
        drafted("model_stock")
    genome = drafted("model_stock", bounds={"filter_wise": [False, True]})
    assert genome.decode([True])["slices"][0]["parameters"] == {"filter_wise": True}


def test_a_missing_base_and_missing_models_are_mistakes_of_the_configuration():
    with pytest.raises(RecipeError, match="ties needs a base model"):
        drafted("ties", base=None)
    with pytest.raises(RecipeError, match=r"there is no such folder\n  at genome.models\[1\].*\(e.yml:5\)"):
        drafted("linear", ("de", "x/no"), None)


@pytest.mark.parametrize(
    ("objective", "what"),
    [
        ({"perplexity": "a.txt", "task": "b"}, "an objective has `perplexity` and `task`"),
        ({"weight": 2}, "an objective has nothing to score by"),
        ({"perplexity": "a.txt", "metric": "acc"}, "`metric` does not belong to `perplexity`"),
        ({"command": "./score.sh"}, "`./score.sh` runs code"),
        ({"call": "score.py:run"}, "`score.py:run` runs code"),
        ({"perplexty": "a.txt"}, "unknown key `perplexty` in an objective"),
    ],
)
def test_mistakes_in_objectives(objective, what):
    text = rendered(
        {"genome": {"merge_method": "linear", "models": ["models/de", "models/es"]}, "objectives": [objective]}
    )
    with pytest.raises(RecipeError) as caught:
        prepare(text, "e.yml", MergeOptions())
    assert what in str(caught.value)
    assert "e.yml:" in str(caught.value)


def test_something_to_score_by_is_needed():
    text = "genome: {merge_method: linear, models: [models/de, models/es]}"
    with pytest.raises(RecipeError, match="nothing to score candidates by"):
        prepare(text, "e.yml", MergeOptions())
    experiment, _, _ = prepare(text, "e.yml", MergeOptions(), ["own_task"])
    assert [objective.name for objective, _ in experiment.objectives] == ["own_task"]


def test_tasks_of_the_command_line_keep_the_metric_of_the_configuration():
    text = configuration("linear", base=None).replace(
        "- own_task", "- {name: own_task, metric: f1, weight: 2}\n- other"
    )
    experiment, _, _ = prepare(text, "e.yml", MergeOptions(), ["own_task", "third"])
    found = [(objective.name, objective.metric, objective.weight) for objective, _ in experiment.objectives]
    assert found == [("own_task", "f1", 2.0), ("third", "acc,none", 1.0)]


@pytest.mark.parametrize("task", ["mmlu_anatomy", "arc_easy", "gsm8k", "leaderboard_ifeval", "piqa"])
def test_e3_public_benchmarks_are_refused(task):
    text = configuration("linear", base=None).replace("own_task", task)
    with pytest.raises(RecipeError, match="is a public benchmark"):
        prepare(text, "e.yml", MergeOptions())
    _, _, findings = prepare(text, "e.yml", MergeOptions(), unleashed=True)
    assert next(problem.what for problem in findings.warnings).startswith(f"`{task}` is a public benchmark")


def test_e3_training_splits_are_no_benchmarks():
    _, _, findings = prepare(configuration("linear", base=None).replace("own_task", "gsm8k_train"), "e", MergeOptions())
    assert findings.warnings == []


def test_models_of_equal_names_are_told_apart(tmp_path, monkeypatch, examples):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model").symlink_to(examples / "models" / "de")
    monkeypatch.chdir(tmp_path)
    genome = {"merge_method": "linear", "models": ["first/model", "second/model"]}
    found = prepare(rendered({"genome": genome, "tasks": ["t"]}), "e", MergeOptions())[1]
    assert [gene.name for gene in found.genes] == ["weight first/model", "weight second/model"]


@pytest.mark.parametrize(("models", "high"), [(("de",), 2), (("de", "es"), 1)])
def test_weights_of_several_models_share_what_one_could_have(models, high):
    assert {(gene.low, gene.high) for gene in drafted("task_arithmetic", models).genes} == {(0, high)}
