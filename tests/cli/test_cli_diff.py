"""``mergekit diff``: table, lists, JSON, plot, errors."""

import json

import pytest
from click.testing import CliRunner

from mergekit.cli.diff import number
from mergekit.cli.main import commands
from mergekit.report import heatmap


def diff(*words):
    return CliRunner().invoke(commands, ["diff", *map(str, words)])


@pytest.fixture(autouse=True)
def quiet(compiled):
    """On a machine where kernels have been compiled, there is less to say."""


def answer(*words):
    result = diff(*words, "--json", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["ok"] is True
    return found


@pytest.mark.parametrize("measure", ["relative", "symmetric", "cosine", "changed"])
def test_the_table_shows_what_json_says(measure, models):
    result = diff(models / "a", models / "b", "--measure", measure)
    assert (result.exit_code, result.stderr) == (0, "")
    found = answer(models / "a", models / "b")
    table, _, summary = result.stdout.partition("\n\ncompared")
    rows = [*found["rows"], {"label": "all", "parts": found["parts"], "all": found["all"]}]
    columns = []
    for block in table.split("\n\n"):  # of a table too wide for the screen
        (_, *shown), *lines = [line.split() for line in block.splitlines()]
        columns += shown
        for row, line in zip(rows, lines, strict=True):
            cells = {**row["parts"], "all": row["all"]}
            assert line == [row["label"], *(number(cells[name][measure]) for name in shown if name in cells)]
    assert columns == [*found["parts"], "all"]
    assert f"cosine        {number(found['all']['cosine'])}\n" in summary
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_lists_of_tensors(models):
    found = answer(models / "a", models / "b", "--tensors")["tensors"]
    assert len(found) == 21
    most = sorted(found, key=lambda tensor: -tensor["relative"])[:3]
    assert answer(models / "a", models / "b", "--top", 3)["tensors"] == most
    least = sorted(found, key=lambda tensor: tensor["cosine"])[:3]
    assert answer(models / "a", models / "b", "--top", 3, "--measure", "cosine")["tensors"] == least
    lines = diff(models / "a", models / "b", "--top", 3).stdout.splitlines()[-3:]
    assert [line.split()[-1] for line in lines] == [tensor["name"] for tensor in most]
    assert [line.split()[0] for line in lines] == [number(tensor["relative"]) for tensor in most]


def test_a_model_and_itself(models):
    text = diff(models / "a", models / "a", "-j", 2).stdout
    assert "relative      0, 0 if symmetric\n" in text
    assert "cosine        1\n" in text
    assert "changed       0.0% of all entries\n" in text


def test_models_of_other_sizes(models):
    result = diff(models / "a", models / "c")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    assert "model.embed_tokens.weight (shapes [32, 16] and [28, 16])" in told.partition("not compared")[2]
    assert set(answer(models / "a", models / "c")["unlike"]) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_json_into_a_file(models, tmp_path):
    file = tmp_path / "diff.json"
    result = diff(models / "a", models / "b", "--json", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(file.read_text()) == answer(models / "a", models / "b")


def test_a_plot(models, tmp_path):
    file = tmp_path / "diff.png"
    result = diff(models / "a", models / "b", "--plot", file)
    assert result.exit_code == 0
    assert result.stdout == diff(models / "a", models / "b").stdout
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_read(models, tmp_path, monkeypatch):
    monkeypatch.setattr(heatmap, "find_spec", lambda _: None)
    result = diff(models / "a", models / "nowhere", "--plot", tmp_path / "diff.png")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "error: a heatmap needs matplotlib\n  try pip install 'mergekit[plot]'\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--plot", "diff.jpg"), 2, "does not end in one of .png, .svg, .pdf"),
        (("--plot", "nowhere/diff.png"), 2, "there is no folder `nowhere`"),
        (("--json", "nowhere/diff.json"), 2, "there is no folder `nowhere`"),
        (("--top", "0"), 2, "0 is not in the range"),
    ],
)
def test_wrong_command_lines(words, code, said, models):
    result = diff(models / "a", models / "b", *words)
    assert result.exit_code == code
    assert said in result.stdout + result.stderr


def test_a_missing_model(models):
    result = diff(models / "a", models / "nowhere")
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"{models / 'nowhere'}: there is no such folder" in result.stderr
    result = diff(models / "a", models / "nowhere", "--json", "-")
    found = json.loads(result.stdout)
    assert (result.stderr, found["ok"], found["exit_code"]) == ("", False, 4)
