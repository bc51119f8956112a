"""The guide on long merges: its commands run, and say what it shows; the merge it interrupts ends as any other."""

import json

from pages import carry_out


def contents(folder):
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(found.pop("merge_report.json"))
    del report["seconds"]
    return found, report


def test_its_commands_run_and_say_what_it_shows(here):
    def after(command):
        assert (here / "merged.partial").exists() == ("stop.py" in command)
        if not (here / "plain").exists():
            (here / "merged").rename(here / "plain")

    assert len(carry_out("guides/long-merges.md", here, after)) == 4
    assert not (here / "small").exists()
    (merged, report), (plain, expected) = contents(here / "merged"), contents(here / "plain")
    assert merged == plain
    assert report == expected
