"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import mergekit

MODULES = ["mergekit", *(module.name for module in pkgutil.walk_packages(mergekit.__path__, "mergekit."))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [name for name in MODULES if not name.endswith("__main__")]
    assert sum(bool(test.examples) for name in names for test in finder.find(importlib.import_module(name))) > 30
