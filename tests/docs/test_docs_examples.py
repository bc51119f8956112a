"""Every method has an example recipe, and every example is carried out."""

from pathlib import Path

import pytest
import yaml

from mergekit.merging import JobOptions, merge_recipe
from mergekit.methods import METHODS
from mergekit.plan import PlanOptions
from mergekit.report.verify import verify_folder

ROOT = Path(__file__).parents[2]
RECIPES = {file.stem: file for file in sorted((ROOT / "examples" / "recipes").glob("*.yml"))}


def test_every_method_has_an_example():
    missing = [f"examples/recipes/{name}.yml" for name in METHODS if name not in RECIPES]
    assert not missing, "there is no " + ", ".join(missing)


@pytest.mark.parametrize("name", [name for name in METHODS if name in RECIPES])
def test_an_example_has_the_name_of_its_method_and_says_how_to_try_it(name):
    text = RECIPES[name].read_text(encoding="utf-8")
    assert yaml.safe_load(text)["merge_method"] == name
    assert f"# Try it: mergekit-yaml examples/recipes/{name}.yml out\n" in text
    assert max(map(len, text.splitlines())) <= 78, "it is printed in 80 columns, indented by 2"


@pytest.mark.parametrize("name", RECIPES)
def test_examples_are_carried_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = JobOptions(plan=PlanOptions(strict=True, workers=2), model_card=False)
    report = merge_recipe(
        RECIPES[name].read_text(encoding="utf-8"), tmp_path / "out", file=str(RECIPES[name]), options=options
    )
    assert (report["warnings"], report["notices"]) == ([], [])
    assert report["left_over"] == []
    assert [entry["name"] for entry in report["tensors"] if entry["non_finite"]] == []
    assert any(entry["relative_distance"] != 0 for entry in report["tensors"]) != (name == "passthrough")
    assert verify_folder(tmp_path / "out").ok


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_of_an_example_is_read(name):
    recipe = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    own = [recipe, *recipe.get("models", ()), *recipe.get("slices", ())]
    given = {parameter for entry in own for parameter in entry.get("parameters", ())}
    assert given <= {each.name for each in METHODS[recipe["merge_method"]].parameters()}
