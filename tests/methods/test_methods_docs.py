"""Examples in docstrings run and show what they claim."""

import doctest
import importlib
import pkgutil

import pytest

import mergekit.kernels
import mergekit.methods

MODULES = [
    found.name
    for package in (mergekit.kernels, mergekit.methods)
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
MODULES += ["mergekit.kernels", "mergekit.methods"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    found = [example for name in MODULES for example in doctest.DocTestFinder().find(importlib.import_module(name))]
    assert sum(bool(each.examples) for each in found) >= 5
