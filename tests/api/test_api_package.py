"""The package as programs see it: what it names, what it loads, and the pages about it."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mergekit

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)


def run(code, **options):
    line = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize("statement", ["import mergekit", "from mergekit import MergeOptions; MergeOptions()"])
def test_importing_it_loads_no_library(statement):
    heavy = "{'numpy', 'torch', 'yaml', 'numba', 'click', 'jinja2', 'rich'}"
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); {statement}; print({heavy} & set(sys.modules))"
    assert run(code).stdout == "set()\n"


def test_everything_that_is_named_is_there():
    assert set(mergekit.__all__) == {*mergekit._HOMES, "__version__"}
    assert set(mergekit.__all__) <= set(dir(mergekit))
    for name in mergekit._HOMES:
        assert getattr(mergekit, name).__name__ == name


def test_what_is_not_named_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'merge_modles'"):
        mergekit.merge_modles  # noqa: B018


def test_editors_see_what_is_loaded_later():
    source = Path(mergekit.__file__).read_text("utf-8")
    seen = re.findall(r"^    from (\S+) import (.+)$", source, re.M)
    assert {name: module for module, names in seen for name in names.split(", ")} == mergekit._HOMES


def shown(page):
    """Blocks of Python of a page, each with the text that it prints; None where that is not shown."""
    fences = FENCE.findall(page)
    for index, (kind, text) in enumerate(fences):
        if kind == "python":
            following = fences[index + 1 :][:1]
            yield text, following[0][1] if following and following[0][0] == "text" else None


@pytest.mark.parametrize("page", ["docs/guides/python.md", "README.md"])
def test_examples_print_what_is_shown(page, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    blocks = list(shown((ROOT / page).read_text("utf-8")))
    assert blocks
    names = {"tensor": np.ones(3), "other": np.zeros(3)}  # of the reader, where a page does not make them
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert expected is None or printed.getvalue() == expected
