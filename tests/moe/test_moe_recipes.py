"""Mixture recipes that are wrong, or need a remark."""

import json
import shutil

import pytest
import yaml

from mergekit.errors import RecipeError
from mergekit.moe import MoeOptions, plan_moe, read_moe
from mergekit.recipe.kinds import is_moe


@pytest.fixture
def models(dense):
    return [dense("llama", seed) for seed in range(3)]


def text_of(base, experts, mode="hidden", **more):
    return yaml.safe_dump({"base_model": str(base), "gate_mode": mode, **more, "experts": experts}, sort_keys=False)


def expert(folder, *prompts, **more):
    return {"source_model": str(folder), **({"positive_prompts": list(prompts)} if prompts else {}), **more}


def planned(text, **more):
    return plan_moe(text, file="moe.yml", moe=MoeOptions(gates=None, **more))


def mistakes(text, **more):
    with pytest.raises(RecipeError) as caught:
        planned(text, **more)
    return caught.value.problems


def warnings(text, **more):
    return [(str(problem.place or ""), problem.what) for problem in planned(text, **more).plan.findings.warnings]


def test_prompts_are_asked_for_where_routers_are_made_of_them(models):
    given = [expert(models[1], "a"), expert(models[2])]
    (problem,) = mistakes(text_of(models[0], given))
    assert str(problem.place) == "experts[1] (moe.yml:7)"
    assert problem.what == "the expert has no prompts, and `gate_mode: hidden` makes routers of them"
    for mode in ("random", "uniform_random"):
        assert planned(text_of(models[0], [expert(models[1]), expert(models[2])], mode)).recipe.top_k == 2


def test_equal_prompts_cannot_be_told_apart(models):
    given = [expert(models[1], "a", "b"), expert(models[2], "a", "b")]
    (problem,) = mistakes(text_of(models[0], given, "cheap_embed"))
    assert problem.what == "all experts have the same prompts, so that no router can tell them apart"
    given.append(expert(models[0], "c"))
    (told,) = warnings(text_of(models[0], given, "cheap_embed"))
    assert told == (
        "experts[1] (moe.yml:8)",
        "the expert has the prompts of `experts[0]`: the router cannot tell them apart",
    )


def test_equal_models_are_let_through_if_that_is_understood(models):
    text = text_of(models[0], [expert(models[1], "a"), expert(models[1], "b")])
    (problem,) = mistakes(text)
    assert "all experts are" in problem.what
    assert "--i-understand-this-is-not-useful-without-training" in problem.hint
    assert planned(text, same_experts=True).plan.findings.errors == []
    assert planned(text_of(models[0], [expert(models[1]), expert(models[1])], "random")).plan.tasks


def test_more_experts_for_a_token_than_there_are(models):
    given = [expert(models[1]), expert(models[2])]
    (problem,) = mistakes(text_of(models[0], given, "random", experts_per_token=3))
    assert str(problem).splitlines() == [
        "each token is to go to 3 experts, and there are 2",
        "  at experts_per_token (moe.yml:3)",
        "  expected 1 to 2",
    ]
    (problem,) = mistakes(text_of(models[0], given, "random", experts_per_token=0))
    assert problem.place.line == 3


def test_an_unknown_gate_mode_gets_a_suggestion(models):
    (problem,) = mistakes(text_of(models[0], [expert(models[1]), expert(models[2])], "randum"))
    assert problem.what == "`randum` is not a gate mode"
    assert problem.hint == "`random`"
    assert str(problem.place) == "gate_mode (moe.yml:2)"


def test_prompts_without_effect_are_remarked_on(models):
    text = text_of(models[0], [expert(models[1], "a"), expert(models[2], "b")], "random")
    assert ("gate_mode (moe.yml:2)", "prompts have no effect: `gate_mode` is `random`") in warnings(text)


@pytest.mark.parametrize(
    ("entry", "path", "what"),
    [
        ({"noise_scale": -1}, "experts[0].noise_scale", "`-1` is not a standard deviation"),
        ({"residual_scale": "much"}, "experts[0].residual_scale", "`much` is not a factor"),
        ({"positive_prompts": [""]}, "experts[0].positive_prompts[0]", "the text is empty"),
        (
            {"positive_prompts_file": "/no/where.txt"},
            "experts[0].positive_prompts_file",
            "`/no/where.txt` cannot be read",
        ),
    ],
)
def test_values_that_mean_nothing(models, entry, path, what):
    (problem,) = mistakes(text_of(models[0], [expert(models[1], **entry), expert(models[2])], "random"))
    assert problem.place.path == path
    assert what in problem.what


def test_prompts_come_from_lines_of_a_file_or_a_list_in_json(models, tmp_path):
    lines, texts = tmp_path / "lines.txt", tmp_path / "texts.json"
    lines.write_text("first\n\n  second \n", encoding="utf-8")
    texts.write_text(json.dumps(["two\nlines", "käse"]), encoding="utf-8")
    entry = expert(models[1], "zeroth", positive_prompts_file=str(lines), negative_prompts_file=str(texts))
    recipe, findings = read_moe(text_of(models[0], [entry, expert(models[2], "x")]))
    assert findings.errors == []
    assert recipe.experts[0].positive == ("zeroth", "first", "  second ")
    assert recipe.experts[0].negative == ("two\nlines", "käse")
    texts.write_text('{"a": 1}')
    recipe, findings = read_moe(text_of(models[0], [entry, expert(models[2], "x")]))
    assert recipe is None
    assert "does not hold a list of texts" in findings.errors[0].what


def test_a_base_without_tokenizer_serves_random_routers_only(models, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(models[0] / name, bare)
    given = [expert(models[1], "a"), expert(models[2], "b")]
    assert plan_moe(text_of(bare, given, "random")).plan.tasks
    from mergekit.errors import MissingModelError

    with pytest.raises(MissingModelError, match="there is no tokenizer"):
        plan_moe(text_of(bare, given, "cheap_embed"))


def test_experts_that_are_hardly_told_apart_are_named(models):
    given = [expert(models[1], "a b c d"), expert(models[2], "a b c d e")]
    found = plan_moe(text_of(models[0], given, "cheap_embed")).plan.findings.warnings
    assert found[0].what.startswith("the experts are hardly told apart in all layers: some will see few tokens")
    told = plan_moe(text_of(models[0], [expert(models[1]), expert(models[2])], "random")).plan.findings.warnings
    assert told == []


def test_fitted_rows_are_told_apart_though_they_add_up_to_nothing(models, cache):
    given = [expert(models[1], "abc abc"), expert(models[2], "0123 45"), expert(models[0], "( ) * +")]
    made = plan_moe(text_of(models[0], given, "fitted"))
    assert made.plan.findings.warnings == []
    routers = [task.operands[0].view for task in made.plan.tasks if task.out.name.endswith("gate.weight")]
    assert [view.values.size for view in routers] == [3 * 32] * 2
    for view in routers:
        whole = view.values.reshape(3, 32)
        assert abs(whole.sum(0)).max() < 1e-4 * abs(whole).max()
    given.append(expert(models[1], "( ) * +"))
    assert "hardly told apart" in str(plan_moe(text_of(models[0], given, "fitted")).plan.findings.warnings[-1])


def test_every_mistake_is_reported_at_once(models):
    text = text_of(models[0], [expert(models[1]), {"model": "/no/where"}], "hidden", experts_per_token=5, dtyp="bf16")
    places = [problem.place.path for problem in mistakes(text)]
    assert {"dtyp", "experts[1].model"} <= set(places)


def test_what_is_a_mixture_recipe():
    assert is_moe("base_model: a\nexperts: []")
    assert is_moe("merge_method: moe\nmodels: [a]")
    assert not is_moe("merge_method: linear\nmodels: [{model: experts}]")
    assert not is_moe("- experts")
    assert not is_moe("experts: [")


def test_a_plan_that_is_only_shown_runs_no_model(models, monkeypatch):
    monkeypatch.setattr("mergekit.moe.gates.hidden_vectors", lambda *_: pytest.fail("the base was run"))
    made = planned(text_of(models[0], [expert(models[1], "a"), expert(models[2], "b")]))
    assert len(made.plan.tasks) == 3 + 2 * (6 + 1 + 6)
    taken = {(entry.model, entry.reason, len(entry.tensors)) for entry in made.plan.leftovers}
    assert taken == {
        (0, "the MLPs of the experts take its place", 6),
        (1, "only the MLPs of an expert are taken", 15),
        (2, "only the MLPs of an expert are taken", 15),
    }
