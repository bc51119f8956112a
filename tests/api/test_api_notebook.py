"""What notebooks call: configurations, options, `run_merge`."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from tiny_checkpoints import octets, read_model

import mergekit
from mergekit import merging
from mergekit.api.options import carrying_out
from mergekit.cli.merge import merge
from mergekit.config import MergeConfiguration
from mergekit.errors import OutputError, RecipeError, UnsupportedError
from mergekit.merge import MergeOptions, run_merge

NOTEBOOK = """
OUTPUT_PATH = "./merged"
LORA_MERGE_CACHE = "/tmp"
CONFIG_YML = "./config.yml"
COPY_TOKENIZER = True
LAZY_UNPICKLE = True
LOW_CPU_MEMORY = False

import torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
with open(CONFIG_YML, "r", encoding="utf-8") as fp:
    merge_config = MergeConfiguration.model_validate(yaml.safe_load(fp))
run_merge(
    merge_config,
    out_path=OUTPUT_PATH,
    options=MergeOptions(
        lora_merge_cache=LORA_MERGE_CACHE,
        cuda=torch.cuda.is_available(),
        copy_tokenizer=COPY_TOKENIZER,
        lazy_unpickle=LAZY_UNPICKLE,
        low_cpu_memory=LOW_CPU_MEMORY,
    ),
)
print("Done!")
"""


@pytest.fixture
def content(models):
    """A recipe as a YAML library reads it."""
    entries = [{"model": str(models / name), "parameters": {"weight": weight}} for name, weight in (("a", 1), ("b", 3))]
    return {"merge_method": "linear", "models": entries, "dtype": "float32"}


@pytest.fixture
def config(content):
    return MergeConfiguration.model_validate(content)


def test_a_notebook_runs_unchanged(content):
    text = "# mine\n" + yaml.safe_dump(content)
    Path("config.yml").write_text(text)
    line = [sys.executable, "-W", "error", "-c", NOTEBOOK]
    environment = {**os.environ, "PYTHONPATH": str(Path(mergekit.__file__).parents[1])}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("Done!\n", "")
    mergekit.merge_models(text, "expected")
    merged, expected = read_model(Path("merged")), read_model(Path("expected"))
    assert {name: octets(tensor) for name, tensor in merged.items()} == {
        name: octets(tensor) for name, tensor in expected.items()
    }


def test_a_cell_may_be_run_again(config):
    assert run_merge(config, "out") is None
    first = Path("out").stat().st_ino
    run_merge(config, "out", options=MergeOptions())
    assert Path("out").stat().st_ino != first
    assert json.loads(Path("out/merge_report.json").read_text())["method"] == "linear"
    run_merge(config, Path("out"), MergeOptions(out_shard_size=30_000))
    run_merge(config, Path("out"), MergeOptions())
    assert [file.name for file in sorted(Path("out").glob("*.safetensors"))] == ["model.safetensors"]


def test_an_empty_folder_may_be_there(config):
    Path("out").mkdir()
    run_merge(config, "out")
    assert Path("out/config.json").is_file()


def test_files_of_ones_own_are_kept(config):
    run_merge(config, "out")
    Path("out/quantised").mkdir()
    Path("out/quantised/model.gguf").write_text("mine")
    with pytest.raises(OutputError, match=r"holds `quantised/model\.gguf`, which this merge does not write"):
        run_merge(config, "out")
    assert Path("out/quantised/model.gguf").read_text() == "mine"
    run_merge(config, "out", MergeOptions(overwrite=True))
    assert not Path("out/quantised").exists()


def test_models_that_no_merge_has_made_are_kept(config):
    Path("out").mkdir()
    Path("out/config.json").write_text("{}")
    with pytest.raises(OutputError, match="not empty"):
        run_merge(config, "out")
    assert [file.name for file in Path("out").iterdir()] == ["config.json"]


def test_the_source_is_kept_if_it_says_the_same(config, content):
    source = "# mine\n" + yaml.safe_dump(content)
    run_merge(config, "out", config_source=source)
    assert Path("out/mergekit_config.yml").read_text() == source
    with pytest.warns(UserWarning, match="`config_source` is not used") as caught:
        run_merge(config, "out", config_source=source.replace("float32", "float16"))
    assert caught[0].filename == __file__
    assert yaml.safe_load(Path("out/mergekit_config.yml").read_text()) == content


def test_a_configuration_tells_what_it_holds(models):
    config = MergeConfiguration.from_yaml(
        f"""
        merge_method: ties
        base_model: {models / "base"}
        models:
        - {{model: {models / "a"}, parameters: {{weight: 0.5}}}}
        - model: org/name@v1
        parameters: {{density: [0.2, 0.4], normalize: true}}
        dtype: torch.bfloat16
        out_dtype: float16
        chat_template: chatml
        """,
        file="merge.yml",
    )
    assert config.merge_method == "ties"
    assert str(config.base_model) == str(models / "base")
    assert [str(entry.model) for entry in config.models] == [str(models / "a"), "org/name@v1"]
    assert config.models[1].model.model.path == "org/name"
    assert config.slices is None
    assert config.parameters == {"density": [0.2, 0.4], "normalize": True}
    assert (config.dtype, config.out_dtype, config.chat_template) == ("bfloat16", "float16", "chatml")
    assert [ref.model.path for ref in config.referenced_models()] == [
        str(models / "base"),
        str(models / "a"),
        "org/name",
    ]
    assert config.recipe.file == "merge.yml"


def test_what_is_not_there_is_none():
    piece = {"sources": [{"model": "org/name", "layer_range": [0, 2]}]}
    config = MergeConfiguration.model_validate({"merge_method": "passthrough", "slices": [piece]})
    assert config.models is config.base_model is config.dtype is config.out_dtype is config.chat_template is None
    assert config.parameters == {}
    assert config.slices[0].sources[0].layers == range(2)


def test_a_configuration_can_be_written_and_read(config, content):
    assert config.model_dump() == yaml.safe_load(config.to_yaml()) == content
    assert MergeConfiguration.from_yaml(config.to_yaml()) == config == MergeConfiguration.model_validate(config)
    assert eval(repr(config)) == config
    with pytest.raises(AttributeError):
        config.recipe = None


def test_values_of_python_and_numpy_are_taken():
    shared = {"weight": np.float64(0.25), "density": np.array([0.5, 1.0]), "normalize": np.True_}
    content = {
        "merge_method": np.str_("ties"),
        "base_model": Path("base"),
        "models": ({"model": Path("org") / "a", "parameters": shared}, {"model": "b", "parameters": shared}),
        "dtype": None,
    }
    assert MergeConfiguration.model_validate(content).model_dump() == {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "org/a", "parameters": {"weight": 0.25, "density": [0.5, 1.0], "normalize": True}},
            {"model": "b", "parameters": {"weight": 0.25, "density": [0.5, 1.0], "normalize": True}},
        ],
        "dtype": None,
    }


def test_long_and_odd_text_is_kept():
    template = "{% for message in messages %}  " + "long " * 60 + "\n\n\tümlaut: 'x' # y {% endfor %}"
    content = {"merge_method": "linear", "models": [{"model": "a"}], "chat_template": template}
    assert MergeConfiguration.model_validate(content).chat_template == template


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"merge_method": "linaer"}, r"`linaer` .*\n  at merge_method \(<recipe>:1\)\n.*\n  try `linear`"),
        ({"models": [{"model": "a", "paramters": {}}]}, r"at models\[0\].paramters \(<recipe>:4\)"),
        ({"dtype": "bf16"}, r"at dtype \(<recipe>:4\)"),
        ({"parameters": {"weight": object()}}, "a `object` cannot stand in a recipe\n  at parameters.weight\n"),
        ({"models": [{"model": b"a"}]}, r"a `bytes` cannot stand in a recipe\n  at models\[0\].model\n"),
        ({"parameters": {"weight": float("nan")}}, r"not finite\n  at parameters.weight \(<recipe>:5\)"),
    ],
)
def test_mistakes_have_places(change, expected):
    with pytest.raises(RecipeError, match=expected):
        MergeConfiguration.model_validate({"merge_method": "linear", "models": [{"model": "a"}], **change})


@pytest.mark.parametrize("content", [None, 3, "linear", [], {}])
def test_what_is_no_recipe(content):
    with pytest.raises(RecipeError):
        MergeConfiguration.model_validate(content)


QUIET = {
    "allow_crimes": True,
    "async_write": True,
    "clone_tensors": True,
    "copy_tokenizer": False,
    "cuda": True,
    "device": "cpu",
    "gpu_rich": True,
    "lazy_unpickle": True,
    "multi_gpu": True,
    "lora_merge_cache": "/tmp",
    "low_cpu_memory": True,
    "num_threads": 2,
    "out_shard_size": 1000,
    "quiet": True,
    "random_seed": 7,
    "read_to_gpu": True,
    "safe_serialization": True,
    "transformers_cache": "/tmp",
    "trust_remote_code": True,
    "unsafe_truncate_embeddings": True,
    "verbosity": 2,
    "write_model_card": False,
    "write_threads": 4,
}
"""Options of the peer that change what is done, or that nobody misses."""


def test_options_of_the_peer_are_taken():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MergeOptions(**QUIET).random_seed == 7


@pytest.mark.parametrize(("option", "value"), [("lora_merge_dtype", "float16")])
def test_options_that_are_missed_give_one_warning(option, value):
    with pytest.warns(UserWarning, match=f"`{option}` has no effect: ") as caught:
        MergeOptions(**{option: value})
    assert [warning.filename for warning in caught] == [__file__]


def test_pickles_are_refused():
    with pytest.raises(UnsupportedError, match="only safetensors"):
        MergeOptions(safe_serialization=False)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="low_cpu_memroy"):
        MergeOptions(low_cpu_memroy=True)


def test_there_is_one_class_of_options():
    assert MergeOptions is mergekit.MergeOptions


@pytest.mark.parametrize(
    ("options", "kind", "what"),
    [
        ({"num_threads": 0}, ValueError, "`num_threads` is 0: expected at least 1"),
        ({"num_threads": -1}, ValueError, "`num_threads` is -1: expected at least 1"),
        ({"num_threads": True}, TypeError, "`num_threads` is True: expected a whole number"),
        ({"num_threads": "2"}, TypeError, "`num_threads` is '2': expected a whole number"),
        ({"random_seed": "a"}, TypeError, "`random_seed` is 'a': expected a whole number"),
        ({"random_seed": 1.0}, TypeError, "`random_seed` is 1.0: expected a whole number"),
        ({"max_memory": 0}, ValueError, "`max_memory` is 0: expected at least 1"),
        ({"max_memory": "0 GB"}, ValueError, "`max_memory` is 0: expected at least 1"),
        ({"max_memory": "1XB"}, ValueError, "`max_memory`: `1XB` is not a size: expected a whole number of"),
        ({"max_memory": 1e9}, TypeError, "`max_memory` is 1000000000.0: expected a whole number of bytes, or text "),
        ({"out_shard_size": -1}, ValueError, "`out_shard_size` is -1: expected at least 0"),
        ({"out_shard_size": 5e9}, TypeError, "`out_shard_size` is 5000000000.0: expected a whole number of bytes"),
        ({"out_shard_size": None}, TypeError, "`out_shard_size` is None: expected a whole number of bytes"),
    ],
)
def test_numbers_are_checked(options, kind, what):
    with pytest.raises(kind, match=re.escape(what)):
        MergeOptions(**options)


def test_sizes_may_be_texts():
    options = MergeOptions(max_memory="1.5GB", out_shard_size="2GiB", num_threads=np.int64(3))
    assert (options.max_memory, options.out_shard_size, options.num_threads) == (1_500_000_000, 2 << 30, 3)
    planned = carrying_out(options).plan
    assert (planned.max_memory, planned.shard_bytes, planned.workers) == (1_500_000_000, 2 << 30, 3)
    assert MergeOptions(out_shard_size="0") == MergeOptions(out_shard_size=0)


def test_experts_are_fused_or_not():
    with pytest.raises(ValueError, match="'fusd': expected 'as-stored' or 'fused'"):
        MergeOptions(experts="fusd")


CHANGED = {
    "allow_code": True,
    "copy_tokenizer": False,
    "device": "cpu",
    "experts": "fused",
    "max_memory": 1,
    "num_threads": 1,
    "out_shard_size": 1,
    "overwrite": True,
    "restart": True,
    "no_check": True,
    "random_seed": 1,
    "ray": "auto",
    "ray_collect": True,
    "read_to_gpu": True,
    "stream": True,
    "strict": True,
    "unsafe_truncate_embeddings": True,
    "write_model_card": False,
}


def test_every_setting_of_a_merge_has_an_option():
    job, usual = carrying_out(MergeOptions(**CHANGED)), merging.JobOptions()
    for changed, default in ((job, usual), (job.plan, usual.plan)):
        same = [each.name for each in fields(default) if getattr(changed, each.name) == getattr(default, each.name)]
        assert set(same) <= {"preview", "language", "noted"}  # of commands that look ahead, and of other languages
    assert carrying_out(MergeOptions()) == usual


def test_every_flag_is_an_option():
    flags = [parameter for parameter in merge.params if isinstance(parameter, click.Option)]
    written = {name for flag in flags for name in flag.opts if name.startswith("--")}
    options = {f"--{each.name.replace('_', '-')}" for each in fields(MergeOptions)}
    assert len(flags) > 20
    assert written - options == {"--help", "--version", "--json", "--verbose", "--plan"}
    assert options - written == {"--verbosity"}


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({"multi_gpu": True}, "auto:*"),
        ({"multi_gpu": True, "device": "xpu:1"}, "xpu:*"),
        ({"multi_gpu": True, "device": "cuda:0,cuda:2"}, "cuda:0,cuda:2"),
        ({"multi_gpu": True, "device": "kernels"}, "kernels"),
    ],
)
def test_devices_can_be_several(options, device):
    assert carrying_out(MergeOptions(**options)).device == device


def test_keeping_is_asked_for_in_two_ways():
    kept = [carrying_out(MergeOptions(**{name: True})).keeping for name in ("read_to_gpu", "gpu_rich", "cuda")]
    assert kept == [True, True, False]


@pytest.mark.parametrize("options", [{"cuda": True}, {"gpu_rich": True}, {"device": "cuda"}])
def test_devices_mean_what_the_flags_mean(options):
    assert carrying_out(MergeOptions(**options)).device == ("cuda:*" if "gpu_rich" in options else "cuda")
    assert carrying_out(MergeOptions(**options | {"device": "cpu"})).device == "cpu"
