"""The commands as processes, and what they import."""

import json
import re
import signal
import subprocess

import pytest
from click.testing import CliRunner

import mergekit
from mergekit import errors
from mergekit.cli.main import COMMANDS, commands
from mergekit.cli.options import EXIT_CODES

HEAVY = ("numba", "torch", "transformers", "rich", "numpy", "jinja2", "yaml")
IMPORTED = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from mergekit.cli.main import {{}} as entry
sys.argv = {{}}
entry()
"""


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("main", ["mergekit", "--help"]),
        ("main", ["mergekit", "--version"]),
        ("main", ["mergekit", "yaml", "-h"]),
        ("main_yaml", ["mergekit-yaml", "--help"]),
        ("main_yaml", ["mergekit-yaml", "no-such-file", "out"]),
    ],
)
def test_nothing_heavy_is_imported_to_answer(python, entry, words):
    _, _, err = python("-c", IMPORTED.format(entry, words))
    assert err.splitlines()[-1].split() == ["imported:"]


def test_a_merge_imports_neither_torch_nor_rich(python, bench):
    _, out, err = python("-c", IMPORTED.format("main_yaml", ["mergekit-yaml", str(bench.recipe), str(bench.out)]))
    assert out.endswith(f"{bench.out}\n")
    assert not {"torch", "transformers", "rich"} & set(err.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["mergekit", "mergekit.cli.main"])
def test_the_package_runs_as_a_module(python, bench, module):
    code, out, _ = python("-m", module, "yaml", bench.recipe, bench.out)
    assert (code, out.splitlines()[-1]) == (0, f"output   {bench.out}")
    assert (bench.out / "model.safetensors").is_file()


@pytest.mark.parametrize("entry", ["main", "main_yaml"])
def test_both_commands_have_a_version(python, entry):
    run = f"import sys; sys.argv[0] = 'x'; from mergekit.cli.main import {entry} as entry; entry()"
    assert python("-c", run, "--version") == (0, f"mergekit {mergekit.__version__}\n", "")


def test_help_names_every_command_and_alias():
    text = CliRunner().invoke(commands, ["-h"]).stdout
    assert re.search(r"\n  yaml, merge +Merge", text)
    assert all(f"\n  {name}" in text for name in ("verify", "schema"))


def test_the_alias_is_the_same_command():
    context = commands.make_context("mergekit", ["schema"])
    assert commands.get_command(context, "yaml") is commands.get_command(context, "merge")
    assert commands.list_commands(context) == list(COMMANDS)


def test_unknown_commands_are_usage_errors():
    result = CliRunner().invoke(commands, ["mrege"])
    assert result.exit_code == 2
    assert "No such command 'mrege'" in result.stderr


def test_help_explains_every_exit_code():
    text = CliRunner().invoke(commands, ["yaml", "--help"]).stdout
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MergekitError)]
    assert {kind.exit_code for kind in tree} | {0, 2, 130} == set(EXIT_CODES)
    assert all(f"\n  {code:<3}  {meaning}" in text for code, meaning in EXIT_CODES.items())


def test_the_schema_is_that_of_recipes():
    result = CliRunner().invoke(commands, ["schema"])
    schema = json.loads(result.stdout)
    assert schema["title"] == "mergekit recipe"
    assert "linear" in schema["$defs"]["method"]["anyOf"][0]["enum"]


def test_a_closed_pipe_is_no_news(start):
    process = start("-m", "mergekit", "schema")
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(start, bench, number):
    process = start("-m", "mergekit", "yaml", "-", bench.out, stdin=subprocess.PIPE)
    process.stdin.write("#" * (1 << 20))  # more than a pipe holds: afterwards it waits for the rest of the recipe
    process.stdin.flush()
    process.send_signal(number)
    process.stdin.close()  # Python looks at signals when the system call returns
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "interrupted\n"
    assert not bench.out.exists()
