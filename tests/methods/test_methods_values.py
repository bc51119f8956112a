"""Numbers that another implementation was observed to give (`values.json`)."""

import json
from pathlib import Path

import numpy as np
import pytest
from driver import PATHS, run_method
from kernel_formats import decode, encode, ulps
from papers import PAPERS

from mergekit.methods import METHODS
from mergekit.recipe import Constant, Gradient, evaluate

VALUES = json.loads(Path(__file__).with_name("values.json").read_text())
FORMATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def spelled(case):
    shape = "x".join(map(str, case["shape"]))
    return f"{case['method']}-{shape}-{case['dtype']}-{json.dumps(case['parameters'])}"


def cases(half):
    chosen = [case for case in VALUES["cases"] if (case["dtype"] != "float32") is half]
    return pytest.mark.parametrize("case", chosen, ids=spelled)


def operands(case):
    """The base or None, and the models, float64."""
    tensors = [np.reshape(values, case["shape"]).astype(np.float64) for values in case["inputs"]]
    base = None if case["base_index"] is None else tensors.pop(case["base_index"])
    return base, tensors


def method_of(case, models):
    """The method; leaves out parameters that never had an effect."""
    cls = METHODS[case["method"]]
    given = {}
    for declared in cls.parameters():
        value = case["parameters"].get(declared.name, declared.default)
        per_model = value if isinstance(value, list) else [value] * models
        given[declared.field] = tuple(per_model) if declared.per_model else value
    return cls(**given)


def run(case, path):
    base, models = operands(case)
    name = FORMATS[case["dtype"]]
    raw = [None if tensor is None else encode(tensor, name) for tensor in (base, *models)]
    return run_method(method_of(case, len(models)), raw[0], raw[1:], name, path=path)


def of_paper(case):
    base, models = operands(case)
    method = method_of(case, len(models))
    parameters = {declared.name: getattr(method, declared.field) for declared in method.parameters()}
    return PAPERS[case["method"]](base, models, parameters)


@pytest.mark.parametrize("path", PATHS)
@cases(half=False)
def test_float32_as_observed(case, path):
    wanted = np.reshape(case["output"], case["shape"])
    assert np.abs(run(case, path) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@cases(half=False)
def test_the_papers_as_observed(case):
    wanted = np.reshape(case["output"], case["shape"])
    assert np.abs(of_paper(case) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("path", PATHS)
@cases(half=True)
def test_half_precision_is_float32_arithmetic_rounded_once(case, path):
    wanted = encode(of_paper(case), FORMATS[case["dtype"]])
    assert ulps(run(case, path), wanted).max() <= 1


observed_halves = [case for case in VALUES["cases"] if case["dtype"] != "float32" and "output" in case]


@pytest.mark.parametrize("case", observed_halves, ids=spelled)
def test_half_precision_is_near_what_was_observed(case):
    wanted = np.reshape(case["output"], case["shape"])
    found = decode(run(case, "fused")).reshape(case["shape"])
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[case["dtype"]]  # the source rounds every operation
    assert np.abs(found - wanted).max() <= unit * np.abs(wanted).max()


@pytest.mark.parametrize("case", VALUES["settings"], ids=json.dumps)
def test_settings_as_observed(case):
    given = case["setting"]
    setting = Gradient(tuple(given)) if isinstance(given, list) else Constant(given)
    found = evaluate(setting, case["tensor"], case["t"], case["type"])
    assert found == pytest.approx(case["value"], rel=1e-12)
    assert type(found).__name__ == case["type"]
