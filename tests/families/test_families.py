"""Families that have little in common, checked as the matrix checks all of them, and the page of the matrix."""

import re
from pathlib import Path

import checking
import matrix
import pytest
import zoo

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "architectures.md").read_text(encoding="utf-8")

UNLIKE = [
    "clip",
    "deepseek_v3",
    "ernie4_5_moe",
    "gemma4_unified_text",
    "gpt_oss",
    "jamba",
    "led",
    "llava",
    "mamba2",
    "modernbert",
    "nemotron_h",
    "qwen3_5",
    "whisper",
]
REFUSED = {
    "gemma4_text": "embed_tokens_per_layer",
    "gemma3n_text": "config.json|per_layer",
    "swin": "no layers in a row",
}


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars, and one thread: on a busy machine tiny products wait for each other."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", UNLIKE)
def test_a_family_is_merged_and_stacked(name, tmp_path):
    answers = checking.check_family(name, tmp_path)
    assert {question: answers[question] for question in matrix.QUESTIONS} == dict.fromkeys(matrix.QUESTIONS, "yes")


@pytest.mark.parametrize("name", REFUSED)
def test_a_stack_that_could_not_be_loaded_is_refused(name, tmp_path):
    answers = checking.check_family(name, tmp_path)
    assert answers["self_merge"] == answers["average"] == answers["loads"] == "yes"
    assert re.search(f"^refused: .*({REFUSED[name]})", answers["restack"])


def test_a_wrong_merge_is_seen(tmp_path):
    a, b = zoo.make_family("llama", tmp_path)
    assert checking.average(a, b, tmp_path / "right") == "yes"
    assert "wrong" in checking.average(a, b, tmp_path / "wrong", (0.9, 0.1))


def _rows():
    """The first five cells of every family's line: its name, and four answers, empty if it could not be built."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| [\w.-]+ \|", line) and "self-merge" not in line]
    return [[cell.strip() for cell in line.split("|")[1:6]] for line in lines if "---" not in line]


def test_the_page_says_how_it_is_made():
    assert matrix.COMMAND in PAGE


def test_the_page_lists_every_family():
    import transformers

    made_with = re.search(r"Made with transformers ([\d.]+\d)", PAGE)[1]
    if made_with != transformers.__version__:
        pytest.skip(f"the page was made with transformers {made_with}")
    assert sorted(row[0] for row in _rows()) == sorted(zoo.families())


def test_the_page_counts_what_it_lists():
    told = [
        int(number)
        for number in re.search(r"(\d+) families .*? (\d+) come .*? (\d+) are .*? (\d+) av.*? (\d+) can", PAGE).groups()
    ]
    built = [row for row in _rows() if row[1]]
    columns = [sum(row[column] == "yes" for row in built) for column in range(1, 5)]
    assert told == [len(built), *columns]
