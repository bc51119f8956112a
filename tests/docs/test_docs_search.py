"""The guide on the search: its commands run and print what it shows."""

import json

import yaml
from pages import carry_out, text_of

PAGE = text_of("guides/search.md")


def test_its_commands_run_and_say_what_it_shows(here):
    assert len(carry_out("guides/search.md", here)) == 4
    assert len(json.loads((here / "found" / "history.json").read_text(encoding="utf-8"))["trials"]) == 14
    assert yaml.safe_load((here / "found" / "best_config.yaml").read_text(encoding="utf-8"))["slices"]
    assert {file.name for file in (here / "found").iterdir()} >= {"history.csv", "progress.png", "final_model"}
    assert list((here / "front" / "front").glob("trial_*.yaml"))


def test_it_names_every_key_of_a_configuration():
    from mergekit.evolution.language import EXPERIMENT, GENOME
    from mergekit.evolution.scoring import OBJECTIVE

    ours = ("layer_granularity", "filters", "smooth", "bounds", "parameters", "normalize", "allow_negative_weights")
    assert set(ours) < {key.name for key in GENOME.keys}
    names = [*ours, *(key.name for key in OBJECTIVE.keys if key.name != "name")]
    names += [key.name for key in EXPERIMENT.keys if key.name not in ("genome", "random_init")]
    assert [name for name in names if name not in PAGE] == []
