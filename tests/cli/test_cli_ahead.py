"""`mergekit check`, `mergekit plan` and `mergekit explain`: what is known before a merge."""

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from mergekit.cli import explain as explaining
from mergekit.cli.main import commands
from mergekit.cli.planned import duration
from mergekit.report import heatmap

RECIPE = """\
merge_method: linear
models:
- model: {a}
  parameters:
    weight:
    - filter: self_attn
      value: [0.2, 0.8]
    - value: 0.4
- model: {b}
"""


@pytest.fixture
def run(bench):
    """A command with the recipe of the bench."""

    def call(command, *words, out=False):
        last = [str(bench.out)] if out else []
        return CliRunner().invoke(commands, [command, *map(str, words), str(bench.recipe), *last])

    return call


@pytest.fixture
def varied(bench):
    bench.recipe.write_text(RECIPE.format(a=bench.models / "a", b=bench.models / "b"))


def fields(record, *names):
    return {name: record[name] for name in names}


# check


def test_check_says_what_will_be(run, bench):
    result = run("check", out=True)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    labels = ["method", "models", "tensors", "dtypes", "vocabulary", "tokenizer", "chat template", "memory", "disk"]
    assert list(rows) == [*labels, "device", "check"]
    assert rows["check"].strip() == "nothing stands in the way"
    assert rows["vocabulary"].strip() == "32 rows; the output head is a tensor of its own"
    assert not bench.out.exists()


def test_check_needs_no_output(run):
    result = run("check")
    assert result.exit_code == 0
    assert "\ndisk" not in result.stdout


CHECK = {"errors", "warnings", "notices", "vocabularies", "disks", "bytes_written", "memory"}


def test_check_for_programs(run, bench):
    record = json.loads(run("check", "--json", out=True).stdout)
    assert record.keys() == {"ok", "check"}
    assert record["ok"] is True
    assert record["check"].keys() == CHECK
    (disk,) = record["check"]["disks"]
    assert disk.keys() == {"folder", "needed", "free"}
    assert 0 < record["check"]["bytes_written"] < disk["needed"] < disk["free"]


def test_problems_for_programs(run, bench):
    bench.write("a", "c", "dtype: float17\n")
    bench.out.mkdir()
    (bench.out / "precious").touch()
    result = run("check", "--json", "--device", "abacus", out=True)
    record = json.loads(result.stdout)
    assert result.exit_code == record["exit_code"] == 3
    assert record.keys() == {"ok", "error", "exit_code", "check"}
    assert record["error"]["type"] == "SeveralProblemsError"
    errors = record["check"]["errors"]
    keys = {"type", "exit_code", "what", "place", "file", "line", "expected", "hint"}
    assert all(error.keys() == keys for error in errors)
    kinds = [(error["type"], error["exit_code"]) for error in errors]
    models = ("IncompatibleModelsError", 4)
    assert kinds == [("RecipeError", 3), models, ("OutputError", 5), ("DeviceError", 8)]
    assert [problem["what"] for problem in record["error"]["problems"]] == [error["what"] for error in errors]


@pytest.mark.parametrize(
    ("extra", "flags", "code"),
    [
        ("dtype: float17\n", (), 3),
        ("", ("--device", "abacus"), 8),
        ("", ("--max-memory", "1MB"), 7),
        ("parameters: {int8_mask: true}\n", ("--strict",), 3),
        ("parameters: {int8_mask: true}\n", (), 0),
    ],
)
def test_exit_codes_are_those_of_the_merge(extra, flags, code, run, bench):
    bench.write(extra=extra)
    checked, merged = run("check", *flags, out=True), bench.run(*flags)
    assert checked.exit_code == merged.exit_code == code
    assert checked.stderr == merged.stderr


def test_no_check_leaves_out_guesses(run, monkeypatch):
    monkeypatch.setattr("mergekit.preview.space.free_bytes", lambda folder: 10)
    assert run("check", out=True).exit_code == 5
    result = run("check", "--no-check", out=True)
    assert result.exit_code == 0
    assert "of 10 bytes that are free" in result.stdout


def test_a_merge_begins_without_checking_if_told(bench, monkeypatch):
    monkeypatch.setattr("mergekit.preview.space.free_bytes", lambda folder: 10)
    refused = bench.run()
    assert (refused.exit_code, bench.out.exists()) == (5, False)
    assert "`--no-check` tries all the same" in refused.stderr
    assert bench.run("--no-check").exit_code == 0
    assert bench.out.is_dir()


# plan


def test_plan_says_what_would_be_done(run, bench):
    result = run("plan", out=True)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        *("method", "models", "tensors", "reads", "", "", "writes", "memory", "threads", "time", "output")
    ]
    assert "time     about " in result.stdout
    assert "(a rough guess from a second of measuring this machine)" in result.stdout
    assert lines[-1] == f"output   {bench.out} (not written)"
    assert not bench.out.exists()


def test_a_merge_has_the_same_plan(run, bench):
    def steady(result):
        return [line for line in result.stdout.splitlines() if not line.startswith("time")]

    assert steady(bench.run("--plan")) == steady(run("plan", out=True))
    assert not bench.out.exists()


def test_plans_for_programs(run, bench):
    record = json.loads(run("plan", "--json").stdout)
    assert record["out"] is None
    plan = record["plan"]
    expected = {"method", "models", "tensors", "left_over", "bytes_read", "bytes_written", "shards", "memory"}
    assert plan.keys() == {*expected, "threads", "estimate", "warnings", "notices"}
    cost = plan["estimate"]
    assert cost.keys() == {"reads", "passes", "read_rate", "write_rate", "merging", "seconds", "unknown"}
    assert sum(own["nbytes"] for own in cost["reads"]) == plan["bytes_read"]
    assert (cost["passes"], cost["unknown"]) == ([1, 1], "")
    assert cost["seconds"][0] < cost["seconds"][1]
    assert len(plan["tensors"]) == 3 + 9 * 2
    assert plan["tensors"][0]["shape"] == [32, 16]


def test_a_plan_is_made_though_there_is_no_room(run, monkeypatch):
    monkeypatch.setattr("mergekit.preview.space.free_bytes", lambda folder: 10)
    result = run("plan", out=True)
    assert result.exit_code == 0
    assert "and 10 bytes are free" in result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (86_400, "24.0 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# explain


def test_explain_draws_gradients(run, bench):
    bench.recipe.write_text(
        f"merge_method: slerp\nbase_model: {bench.models / 'a'}\nmodels: [{{model: {bench.models / 'b'}}}]\n"
    )
    with bench.recipe.open("a") as stream:
        stream.write("parameters:\n  t: [0, 1]\n")
    result = run("explain")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"t = 0 is {bench.models / 'a'}, t = 1 is {bench.models / 'b'}" in " ".join(result.stdout.split())
    assert "t: 0 to 1\nlayers  all parts\n0             0 ▁\n1             1 █\n" in result.stdout
    assert "before  model.embed_tokens 0 ▁" in result.stdout


def test_explain_has_a_column_for_parts_of_equal_values(run, varied):
    text = run("explain").stdout
    assert "layers    (a)  self_attn.*\n0       0.4 ▃        0.2 ▁\n1       0.4 ▃        0.8 █\n" in text
    assert "(a) is  input_layernorm, mlp.*, post_attention_layernorm\n" in text
    assert "normalize: true everywhere, as by default" in text
    assert max(map(len, text.splitlines())) <= 200


def test_explanations_for_programs(run, varied, bench):
    record = json.loads(run("explain", "--json").stdout)
    found = record["explanation"]
    assert found.keys() == {"method", "sentences", "panels"}
    first = found["panels"][0]
    assert first.keys() == {"parameter", "model", "module", "default", "parts", "rows"}
    assert fields(first, "parameter", "model", "module", "default") == {
        "parameter": "weight",
        "model": str(bench.models / "a"),
        "module": "default",
        "default": 1.0,
    }
    values = [row["values"].get("self_attn.q_proj") for row in first["rows"]]
    assert [(row["label"], row["layer"]) for row in first["rows"]] == [
        *(("before", None), ("0", 0), ("1", 1), ("after", None))
    ]
    assert values == [None, [0.2], [0.8], None]


def test_pictures_are_written(run, varied, tmp_path):
    result = run("explain", "--png", tmp_path / "map.png", "--html", tmp_path / "map.html")
    assert result.exit_code == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    body = page.partition("<body>")[2].partition("</body>")[0]
    assert len(ElementTree.fromstring(f"<body>{body}</body>").findall("table")) == 1


@pytest.mark.parametrize(
    ("flag", "file"), [("--png", "map.gif"), ("--png", "none/map.png"), ("--html", "none/map.html")]
)
def test_pictures_that_cannot_be_written_are_refused_at_once(flag, file, run, tmp_path):
    result = run("explain", flag, tmp_path / file)
    assert result.exit_code == 2
    assert not list(tmp_path.glob("map*"))


def test_pictures_without_matplotlib(run, monkeypatch, tmp_path):
    monkeypatch.setattr(heatmap, "find_spec", lambda _: None)
    assert run("explain", "--png", tmp_path / "map.png").exit_code == 4
    assert run("explain", "--html", tmp_path / "map.html").exit_code == 0


def test_bars_have_colours_on_a_terminal():
    assert explaining._coloured("0.5 ▅").startswith("0.5 \x1b[38;5;")
    assert explaining._coloured("layers") == "layers"


def test_mistakes_are_explained_too(run, bench):
    bench.write(extra="dtype: float17\n")
    result = run("explain")
    assert result.exit_code == 3
    assert "float17" in result.stderr
