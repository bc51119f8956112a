"""Sweeps: the curve of a scale, grids, and what they are written to."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mergekit.cli.main import commands
from mergekit.errors import RecipeError
from mergekit.evolution.sweep import Axis, grid

RECIPE = {
    "merge_method": "task_arithmetic",
    "base_model": "models/base",
    "models": [{"model": "models/de"}, {"model": "models/es"}],
    "dtype": "bfloat16",
}
TEXT = ("--bytes", "600", "--window", "150", "--num-threads", "1")


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch, examples):
    monkeypatch.chdir(examples)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return str(file)


def run(*arguments, code=0):
    done = CliRunner().invoke(commands, ["sweep", *arguments])
    assert done.exit_code == code, done.output
    return done


def test_the_curve_of_a_scale(recipe, tmp_path):
    plot, table = tmp_path / "curve.png", tmp_path / "curve.csv"
    done = run(
        recipe, "--set", "parameters.weight=0:1:5", "--objective", "perplexity:text/de.txt", *TEXT, "--json",
        "--plot", str(plot), "--csv", str(table),
    )  # fmt: skip
    found = json.loads(done.stdout)
    scores = [point["score"] for point in found["points"]]
    assert [point["settings"]["parameters.weight"] for point in found["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert found["best"] == scores.index(max(scores)) in (1, 2)
    assert scores[4] < scores[0] < max(scores)  # too much of both is worse than nothing
    assert plot.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, rel=1e-5)


def test_the_curve_of_a_scale_is_that_of_separate_merges(recipe, tmp_path):
    """Directions that are used again for every scale change no score, on one process or two."""
    arguments = ("--set", "parameters.density=0.4,0.8", "--objective", "perplexity:text/de.txt", *TEXT, "--json")
    thin = tmp_path / "thin.yml"
    thin.write_text(yaml.safe_dump({**RECIPE, "merge_method": "dare_ties"}), encoding="utf-8")
    scales = {
        scale: json.loads(run(str(thin), "--set", f"parameters.lambda={scale}", *arguments).stdout)
        for scale in (0.5, 1.0)
    }
    together = json.loads(run(str(thin), "--set", "parameters.lambda=0.5,1.0", *arguments).stdout)
    expected = [point["score"] for found in scales.values() for point in found["points"]]
    assert [point["score"] for point in together["points"]] == expected
    assert len(set(expected)) == 4


def test_what_a_model_scores_is_what_its_merge_scores(recipe, tmp_path):
    """The model that is filled anew for each point is the one that a merge into a folder gives."""
    from mergekit.api.options import MergeOptions
    from mergekit.evolution.candidate import Loading
    from mergekit.evolution.evaluation import Job, RecipeEvaluator
    from mergekit.evolution.objectives import TextObjective

    text = TextObjective("text", 1.0, Path("text/es.txt"), False, 1200, 150)
    points = grid(Path(recipe).read_text(), [Axis("parameters.weight", (0.2, 0.8))])
    warm = RecipeEvaluator((text,), Loading(MergeOptions(num_threads=1)))
    values = [warm.judge(Job(point.recipe)).values for point in points]
    cold = RecipeEvaluator((text,), Loading(MergeOptions(num_threads=1))).judge(Job(points[1].recipe))
    assert values[1] == cold.values
    assert values[0] != values[1]


def test_a_grid_of_methods_and_weights_as_a_table(recipe, tmp_path):
    plot = tmp_path / "plane.svg"
    done = run(
        recipe, "--set", "models[0].parameters.weight=0.2,0.4", "--set", "merge_method=task_arithmetic,ties",
        "--objective", "bits_per_byte:text/de.txt", *TEXT, "--plot", str(plot),
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines() if line]
    assert rows[0][:2] == ["weight", "merge_method"]
    assert [row[:2] for row in rows[1:5]] == [[w, m] for w in ("0.2", "0.4") for m in ("task_arithmetic", "ties")]
    assert rows[5][0] == "best"
    assert "<svg" in plot.read_text(encoding="utf-8")


def test_points_that_fail_are_said_to_and_others_go_on(recipe, tmp_path):
    score = "test -s {0} || {{ touch {0}; echo x > {0}; echo broken >&2; exit 3; }}; echo 7; true".format(
        tmp_path / "seen"
    )
    arguments = (
        recipe,
        "--set",
        "parameters.weight=0.1,0.2",
        "--objective",
        f"command:{score}",
        "--allow-code",
        "--json",
    )
    points = json.loads(run(*arguments).stdout)["points"]
    assert points[0]["score"] is None
    assert points[0]["failure"].endswith("ended with exit code 3: broken")
    assert points[1]["score"] == 7


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("models[5].parameters.weight=1,2", "the recipe has no `5` there"),
        ("modles[0].parameters.weight=1,2", "the recipe has no `modles` there"),
        ("parameters.wieght=1,2", "unknown parameter `wieght`"),
        ("parameters.weight=a,b", "`a` is not a number"),
    ],
)
def test_mistakes_in_settings_are_found_before_work(recipe, setting, what):
    done = run(recipe, "--set", setting, "--objective", "perplexity:text/de.txt", code=3)
    assert what in done.output


@pytest.mark.parametrize(
    "setting", ["parameters.weight", "parameters.weight=", "weight=1:2", "weight=1:2:x", "a=1:2:1"]
)
def test_mistakes_in_the_way_settings_are_written(recipe, setting):
    if setting == "weight=1:2":
        assert Axis.parse(setting).values  # YAML reads a number of base 60, or text
        return
    done = run(recipe, "--set", setting, "--objective", "perplexity:text/de.txt", code=2)
    assert setting in done.output


def test_mistakes_in_objectives_and_files(recipe, tmp_path):
    scale = ("--set", "parameters.weight=1,2")
    for mistake in ("perplexty:x", "-perplexity:text/de.txt", "--command:true"):
        assert "one of perplexity" in run(recipe, *scale, f"--objective={mistake}", code=2).output
    assert "runs code" in run(recipe, *scale, "--objective", "command:true", code=3).output
    assert "is a public benchmark" in run(recipe, *scale, "--objective", "task:mmlu", code=3).output
    text = ("--objective", "perplexity:text/de.txt")
    assert "does not end in" in run(recipe, *scale, *text, "--plot", str(tmp_path / "a.txt"), code=2).output
    assert "there is no folder" in run(recipe, *scale, *text, "--plot", str(tmp_path / "a" / "b.png"), code=2).output


def test_the_recipe_itself_stays_as_it_is():
    text = yaml.safe_dump(RECIPE)
    recipes = [yaml.safe_load(point.recipe) for point in grid(text, [Axis("models[1].parameters.weight", (0.5,))])]
    assert recipes[0]["models"][1] == {"model": "models/es", "parameters": {"weight": 0.5}}
    assert "parameters" not in yaml.safe_load(text)["models"][1]
    with pytest.raises(RecipeError, match=r"expected \[0\] to \[1\]"):
        grid(text, [Axis("models[2].parameters.weight", (1,))])
