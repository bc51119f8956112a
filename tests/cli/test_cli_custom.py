"""Whole merges with methods that did not come with mergekit."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergekit.errors import VerificationError
from mergekit.methods import MethodError

SOURCE = '''
from typing import Annotated
import numpy as np
from mergekit.methods import Bounds, PerModel, merge_method


@merge_method(title="Step [by] step", reference="https://example.org/step", base="ignored")
def step(models, *, weight: PerModel = 1.0, t: Annotated[float, Bounds(0, 1)]):
    """Go a step of the way from the first model to the weighted sum of all."""
    assert models.dtype == np.float32
    total = np.einsum("kn,k->n", models, np.array(weight, np.float32))
    return (1 - t) * models[0] + t * total


@merge_method(title="Spectrum", base="ignored", whole=True, arrays="torch")
def spectrum(models):
    """Take the singular values of the first model, and the vectors of the second."""
    import torch

    if models.ndim < 3:
        return models[1]
    values = torch.linalg.svdvals(models[0])
    left, _, right = torch.linalg.svd(models[1], full_matrices=False)
    return left * values @ right


@merge_method(title="Failing", base="ignored")
def failing(models):
    """Fail."""
    raise RuntimeError("no luck")
'''


@pytest.fixture
def own(bench):
    """Write the recipe with a method of its own, in a file beside it."""
    (bench.folder / "own.py").write_text(SOURCE)

    def write(name, extra=""):
        bench.write(extra=extra)
        bench.recipe.write_text(bench.recipe.read_text().replace("linear", f"./own.py:{name}"))
        return bench

    return write


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_a_merge_with_a_file(own):
    bench = own("step", "parameters: {t: 0.25}\n")
    result = bench.run("--allow-code", "--json")
    assert result.exit_code == 0, result.output
    a, b, merged = (tensors(folder) for folder in (bench.models / "a", bench.models / "b", bench.out))
    for name in merged:
        np.testing.assert_allclose(merged[name], 0.875 * a[name] + 0.125 * b[name], rtol=1e-5, atol=1e-6)


def test_what_is_written_says_which_file_it_was(own):
    bench = own("step", "parameters: {t: 0.25}\n")
    bench.run("--allow-code")
    report = json.loads((bench.out / "merge_report.json").read_text())
    assert report["method"] == "step"
    assert report["method_file"]["file"] == str(bench.folder / "own.py")
    assert len(report["method_file"]["sha256"]) == 64
    assert report["settings"] == [{"method": "step", "based": False, "parameters": {"weight": [0.5, 0.5], "t": 0.25}}]
    assert (bench.out / "mergekit_config.yml").read_text() == bench.recipe.read_text()
    assert r"with the [Step \[by\] step](https://example.org/step) method." in (bench.out / "README.md").read_text()


def test_the_written_recipe_can_be_carried_out_again(own):
    bench = own("step", "parameters: {t: 0.25}\n")
    bench.run("--allow-code")
    first = (bench.out / "model.safetensors").read_bytes()
    (bench.out / "mergekit_config.yml").rename(bench.recipe)
    assert bench.run("--allow-code", "--overwrite", "-j", "3").exit_code == 0
    assert (bench.out / "model.safetensors").read_bytes() == first


def test_a_built_in_method_has_no_file(bench):
    bench.run()
    assert "method_file" not in json.loads((bench.out / "merge_report.json").read_text())


def test_without_the_flag_nothing_runs(own):
    bench = own("step", "parameters: {t: 0.25}\n")
    ran = bench.folder / "ran"
    (bench.folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n{SOURCE}")
    result = bench.run()
    assert result.exit_code == 3
    assert "at merge_method" in result.stderr
    assert f"{bench.recipe}:1" in result.stderr
    assert "try `--allow-code`" in result.stderr
    assert not bench.out.exists()
    assert not ran.exists()


@pytest.mark.parametrize("flags", [[], ["--device", "cpu"]])
def test_whole_tensors_on_torch(own, flags):
    bench = own("spectrum")
    result = bench.run("--allow-code", *flags)
    assert result.exit_code == 0, result.output
    a, b, merged = (tensors(folder) for folder in (bench.models / "a", bench.models / "b", bench.out))
    for name in merged:
        if merged[name].ndim == 2:
            values = [np.linalg.svd(each[name], compute_uv=False) for each in (a, b, merged)]
            np.testing.assert_allclose(values[2], values[0], rtol=1e-3)
        else:
            np.testing.assert_array_equal(merged[name], b[name])


def test_numpy_functions_run_on_devices_too(own):
    bench = own("step", "parameters: {t: 0.25}\n")
    bench.run("--allow-code")
    expected = tensors(bench.out)
    assert bench.run("--allow-code", "--overwrite", "--device", "cpu").exit_code == 0
    for name, found in tensors(bench.out).items():
        np.testing.assert_array_equal(found, expected[name])


def test_a_method_that_fails_ends_the_merge_in_its_line(own):
    bench = own("failing")
    result = bench.run("--allow-code", "--json")
    assert result.exit_code == MethodError.exit_code == VerificationError.exit_code + 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "MethodError"
    (problem,) = error["problems"]
    assert problem["what"].startswith("`failing` failed on `")
    assert problem["what"].endswith("`: RuntimeError: no luck")
    assert problem["file"] == str(bench.folder / "own.py")
    assert "no luck" in SOURCE.splitlines()[problem["line"] - 1]
    assert not bench.out.exists()


def test_parameters_are_resolved_like_those_of_other_methods(own):
    bench = own("step", "parameters: {t: [{filter: mlp, value: 1}, {value: 0}]}\n")
    assert bench.run("--allow-code").exit_code == 0
    a, b, merged = (tensors(folder) for folder in (bench.models / "a", bench.models / "b", bench.out))
    for name in merged:
        expected = (a[name] + b[name]) / 2 if "mlp" in name else a[name]
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("", "step needs the parameter `t`"),
        ("parameters: {t: 2}\n", "`t` is 2, out of range"),
        ("parameters: {t: high}\n", "`high` is not a number"),
    ],
)
def test_parameters_are_checked(own, extra, what):
    result = own("step", extra).run("--allow-code")
    assert result.exit_code == 3
    assert what in result.stderr


def test_a_file_in_the_working_folder(own, python):
    bench = own("step", "parameters: {t: 0.25}\n")
    (bench.folder / "elsewhere").mkdir()
    (bench.folder / "own.py").rename(bench.folder / "elsewhere" / "own.py")
    line = ["-m", "mergekit", "yaml", str(bench.recipe), str(bench.out), "--allow-code"]
    code, _, err = python(*line, cwd=bench.folder / "elsewhere")
    assert (code, bench.out.is_dir()) == (0, True), err
