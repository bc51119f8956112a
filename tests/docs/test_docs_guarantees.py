"""What is promised names tests that exist, and every promise has one."""

import ast
import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs" / "explain" / "guarantees.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


def functions_of(file):
    nodes = ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_promise_is_held_by_tests_that_exist(row):
    promise, meaning, holders = (cell.strip() for cell in row.strip("|").split("|"))
    assert promise
    assert meaning.endswith(".")
    found = TEST.findall(holders)
    assert found
    assert re.sub(r"\s+", " ", TEST.sub("", holders)).strip() == ""
    for file, name in found:
        assert name in functions_of(file), f"{file} has no {name}"


def test_there_are_promises_of_every_kind():
    assert len(ROWS) >= 15
    assert len(re.findall("^## ", PAGE, re.M)) == 4


def test_what_the_pages_point_to_is_there():
    for page in (PAGE, SECURITY):
        for file in re.findall(r"\]\(((?!http)[^)#]+)\)", page):
            assert (ROOT / file).exists(), file
        for file in re.findall(r"python (tests/[\w/]+\.py)", page):
            assert (ROOT / file).is_file(), file
