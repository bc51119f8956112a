"""Hostile models, through every command that looks at them: nothing of them is run, and nothing of them is believed."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from mergekit.cli.main import commands

TOKENS = {f"t{number}": number for number in range(32)}
TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": TOKENS, "merges": []}}


class Touching:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def hostile(bench, tmp_path, canary, models):
    """A model that asks for its own code wherever a model can."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    save_file(load_file(models / "a/model.safetensors"), folder / "model.safetensors", {"format": "pt"})
    code = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "setup.py"):
        (folder / name).write_text(code)
    (folder / "__init__.py").write_text(code)
    config = json.loads((models / "a/config.json").read_text())
    names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names, "trust_remote_code": True}))
    template = (
        "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
        "{% for key in messages.__class__.__mro__[-1].__subclasses__() %}{{ key }}{% endfor %}"
    )
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for name in ("training_args.bin", "optimizer.pt", "more.pkl"):
        (folder / name).write_bytes(pickle.dumps(Touching(canary)))
    return folder


def test_the_canary_sings(canary):
    """Otherwise the tests below would prove nothing."""
    pickle.loads(pickle.dumps(Touching(canary)))
    assert canary.exists()


def run(*words):
    """The exit code; whatever a command does in this process, it would do in its own."""
    result = CliRunner().invoke(commands, list(map(str, words)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code


def test_no_code_of_a_model_is_run(bench, hostile, canary):
    recipe = bench.folder / "hostile.yml"
    folders = (hostile, bench.models / "b")
    entries = "models:\n" + "".join(f"- {{model: {folder}, parameters: {{weight: 1}}}}\n" for folder in folders)
    recipe.write_text(f"merge_method: linear\n{entries}chat_template: auto\ntokenizer_source: union\n")
    plain = bench.folder / "plain.yml"
    plain.write_text(f"merge_method: linear\n{entries}")
    out = bench.folder / "plain"
    codes = {
        "merge": run("merge", plain, out),
        "tokens": run("merge", recipe, bench.folder / "tokens"),
        "raw": run("pytorch", plain, bench.folder / "raw"),
        "verify": run("verify", out, "--full"),
        "reproduce": run("reproduce", out),
        "inspect": run("inspect", hostile),
        "diff": run("diff", hostile, bench.models / "b"),
        "tokens of it": run("tokens", hostile, hostile),
    }
    assert codes["merge"] == codes["reproduce"] == codes["inspect"] == codes["diff"] == 0
    assert not canary.exists()


def test_pickled_weights_that_call_are_refused(bench, hostile, canary):
    weights = {"model.norm.weight": Touching(canary)}
    (hostile / "model.safetensors").unlink()
    (hostile / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    recipe = bench.folder / "hostile.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {hostile}}}]\n")
    for words in (("merge", recipe, bench.folder / "x"), ("inspect", hostile), ("verify", hostile)):
        assert run(*words) in (3, 4, 9)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_lengths_of_gigabytes_take_no_memory(bench, python, tmp_path, name):
    """A sparse file of 8 GB whose header claims to be all of it, in a process that may take 2 GB."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    size = 8 << 30
    starts = {
        "model.safetensors": struct.pack("<Q", size - 8) + b"{",
        "pytorch_model.bin": b"\x80\x02\x8e" + struct.pack("<Q", size - 100),  # BINBYTES8
        "model.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 2**40, 1, size - 100),
    }
    with (model / name).open("wb") as stream:
        stream.write(starts[name])
        stream.truncate(size)
    if name.endswith(".gguf"):
        (model / "config.json").unlink()
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2 << 30},) * 2); import sys; "
    limited += f"sys.argv = ['mergekit', 'inspect', {str(model)!r}]; from mergekit.cli.main import main; main()"
    code, _, err = python("-c", limited)
    assert (code, "Traceback" in err, "MemoryError" in err) == (4, False, False), err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_full_of_what_is_no_number_leave_no_output(bench, value):
    model = bench.folder / "nan"
    model.mkdir()
    tensors = load_file(bench.models / "a/model.safetensors")
    full = {name: np.full_like(tensor, value) for name, tensor in tensors.items()}
    save_file(full, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_bytes((bench.models / "a/config.json").read_bytes())
    for method in ("linear", "ties", "slerp", "karcher"):
        base = f"base_model: {bench.models / 'a'}\n" if method in ("ties", "slerp") else ""
        entries = [model] if method == "slerp" else [model, bench.models / "b"]
        listed = "".join(f"- {{model: {entry}, parameters: {{weight: 0.5}}}}\n" for entry in entries)
        more = "parameters: {t: 0.5}\n" if method == "slerp" else ""
        text = f"merge_method: {method}\n{base}models:\n{listed}{more}"
        bench.recipe.write_text(text.replace(", parameters: {weight: 0.5}", "") if method == "slerp" else text)
        result = bench.run()
        assert result.exit_code == 6, (method, result.stderr)
        assert "infinite or not a number" in result.stderr or "NaN" in result.stderr
        assert not bench.out.exists()
