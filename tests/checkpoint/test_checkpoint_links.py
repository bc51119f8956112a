"""Links in a model folder lead nowhere but into the folder, or into the cache of the hub: what they name is copied."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergekit.checkpoint import open_checkpoint
from mergekit.errors import CheckpointError, MergekitError
from mergekit.merging import merge_recipe

TOKENIZER = json.dumps(
    {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
)
SECRET = "the secret of somebody else"


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "home" / "secret"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


def write_model(folder):
    folder.mkdir(parents=True)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    save_file({name: np.ones((4, 4), np.float32) for name in names}, folder / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "vocab_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return folder


def merge(model, out, more=""):
    merge_recipe(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n{more}", out)
    return out


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE",
        "notes/more.txt",
        "tokenizer.model",
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused_and_nothing_is_copied(tmp_path, secret, name, relative):
    model = write_model(tmp_path / "model")
    link = model / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    up = Path(*[".."] * (1 + name.count("/")))
    link.symlink_to(up / "home" / "secret" if relative else secret)
    for more in ("", "tokenizer_source: union\n", "chat_template: auto\n"):
        with pytest.raises(MergekitError, match="outside of the folder"):
            merge(model, tmp_path / "out", more)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink() and file != secret]
    assert not any(SECRET.encode() in file.read_bytes() for file in written)


def test_a_folder_that_is_a_link_is_not_entered(tmp_path, secret):
    model = write_model(tmp_path / "model")
    (model / "more").symlink_to(secret.parent)
    out = merge(model, tmp_path / "out")
    assert not (out / "more").exists()


def test_a_link_inside_of_the_folder_is_followed(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "licence").write_text("free")
    (model / "LICENSE").symlink_to("licence")
    assert (merge(model, tmp_path / "out") / "LICENSE").read_text() == "free"


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    model = write_model(tmp_path / "model")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    out = merge(snapshot, tmp_path / "out")
    assert (out / "tokenizer.json").read_text() == TOKENIZER
    assert not any(file.is_symlink() for file in out.iterdir())


def test_a_folder_called_blobs_is_no_cache(tmp_path, secret):
    """Only beside snapshots."""
    model = write_model(tmp_path / "a" / "b" / "model")
    for blobs in (tmp_path / "blobs", tmp_path / "a" / "blobs"):
        blobs.mkdir()
        (model / "config.json").rename(blobs / "config.json")
        (model / "config.json").symlink_to(blobs / "config.json")
        with pytest.raises(CheckpointError, match="outside of the folder"):
            open_checkpoint(model)
        (model / "config.json").unlink()
        (blobs / "config.json").rename(model / "config.json")
