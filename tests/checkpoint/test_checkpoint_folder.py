import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergekit.checkpoint import open_checkpoint, read_tensor
from mergekit.errors import CheckpointError, HeaderError, MissingModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "llama"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "llama", "time_step_limit": [0.0, Infinity]}')
    return root


def save(file, **values):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full(2, value, "<f4") for name, value in values.items()}, file)


def save_index(root, **weight_map):
    (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values(checkpoint):
    return {name: float(read_tensor(stored)[0]) for name, stored in checkpoint.tensors.items()}


def refused(root, match, kind=CheckpointError):
    with pytest.raises(kind, match=match) as caught:
        open_checkpoint(root)
    return caught.value.problem


def test_a_single_file(root):
    save(root / SINGLE, a=1, b=2)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1, "b": 2}
    assert checkpoint.root == root
    assert checkpoint.shards == (root / SINGLE,)
    assert checkpoint.config == {"model_type": "llama", "time_step_limit": [0.0, float("inf")]}
    assert checkpoint.remarks == ()
    assert checkpoint.nbytes == 16
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_an_index_and_its_shards(root):
    save(root / FIRST, a=1)
    save(root / SECOND, b=2)
    save_index(root, b=SECOND, a=FIRST)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1, "b": 2}
    assert checkpoint.shards == (root / FIRST, root / SECOND)
    assert checkpoint.remarks == ()


def test_shards_in_a_folder_inside(root):
    save(root / "weights" / "x.safetensors", a=1)
    save_index(root, a="weights/x.safetensors")
    assert values(open_checkpoint(root)) == {"a": 1}


def test_a_complete_index_wins_over_a_single_file(root):
    save(root / SINGLE, a=9)
    save(root / FIRST, a=1)
    save_index(root, a=FIRST)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1}
    [remark] = checkpoint.remarks
    assert remark.startswith(f"`{SINGLE}` is not used")


def test_an_index_of_the_single_file_needs_no_remark(root):
    save(root / SINGLE, a=1)
    save_index(root, a=SINGLE)
    assert open_checkpoint(root).remarks == ()


def test_a_stale_index_loses_against_a_single_file(root):
    save(root / SINGLE, a=9)
    save(root / FIRST, a=1)
    save_index(root, a=FIRST, b=SECOND)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 9}
    [remark] = checkpoint.remarks
    assert remark.startswith(f"`{INDEX}` is not used")
    assert SECOND in remark
    assert FIRST not in remark


def test_missing_shards_are_listed(root):
    save_index(root, **{f"t{n}": f"model-{n:05d}-of-00007.safetensors" for n in range(1, 8)})
    problem = refused(root, "missing shards: `model-00001-of-00007.safetensors`, .* and 2 more")
    assert problem.place == str(root)


def test_a_tensor_that_its_shard_lacks(root):
    save(root / FIRST, a=1)
    save_index(root, a=FIRST, b=FIRST)
    assert refused(root, "lack tensors that the index promises: `b`").place == str(root / INDEX)


def test_a_tensor_in_another_shard_than_promised(root):
    save(root / FIRST, a=1)
    save(root / SECOND, b=2)
    save_index(root, a=SECOND, b=FIRST)
    refused(root, "lack tensors that the index promises: `a`, `b`")


def test_tensors_that_the_index_does_not_name_are_remarked_on(root):
    save(root / FIRST, a=1, c=3)
    save(root / SECOND, b=2, a=9)
    save_index(root, a=FIRST, b=SECOND)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1, "b": 2}
    [remark] = checkpoint.remarks
    assert "`c`" in remark
    assert "`a`" in remark


def test_numbered_shards_without_index(root):
    for number in range(1, 12):
        save(root / f"model-{number:05d}-of-00011.safetensors", **{f"t{number}": number})
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {f"t{number}": number for number in range(1, 12)}
    assert [file.name[6:11] for file in checkpoint.shards] == [f"{number:05d}" for number in range(1, 12)]
    [remark] = checkpoint.remarks
    assert INDEX in remark


def test_a_complete_set_of_numbered_shards_beside_a_rest(root):
    save(root / FIRST, a=1)
    save(root / SECOND, b=2)
    save(root / "model-00001-of-00003.safetensors", a=9)
    assert values(open_checkpoint(root)) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "files",
    [[FIRST], ["model-00001-of-00001.safetensors", FIRST, SECOND], ["model-00000-of-00002.safetensors", SECOND]],
    ids=["incomplete", "two sets", "number zero"],
)
def test_numbered_shards_that_are_not_one_set(root, files):
    for number, file in enumerate(files):
        save(root / file, **{f"t{number}": 1})
    refused(root, "not one complete set: .*" + files[0])


def test_the_same_tensor_in_two_shards_without_index(root):
    save(root / FIRST, a=1)
    save(root / SECOND, a=2)
    refused(root, f"'a' is in two files: `{FIRST}` and `{SECOND}`")


def test_a_shard_that_lies(root):
    (root / SINGLE).write_bytes(b"not a header at all")
    assert refused(root, "claims", HeaderError).place == str(root / SINGLE)


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("model.pt", "`pytorch_model.bin` as the name"),
        ("weights.pth", "`pytorch_model.bin` as the name"),
        ("training.bin", "`pytorch_model.bin` as the name"),
        ("consolidated.00.pth", "safetensors for transformers"),
        ("adapter_model.safetensors", "BASE+ADAPTER as the model"),
        ("consolidated.safetensors", "safetensors for transformers"),
        ("weights.safetensors", "if that is the whole model"),
    ],
)
def test_other_weights_are_named(root, file, hint):
    (root / file).touch()
    problem = refused(root, "no weights in the folder")
    assert file in problem.hint
    assert hint in problem.hint


def test_no_weights_and_nothing_else(root):
    assert refused(root, "no weights in the folder").hint is None


def test_no_config(root):
    (root / "config.json").unlink()
    save(root / SINGLE, a=1)
    assert refused(root, "no config.json").place == str(root)


def test_no_config_but_one_inside(tmp_path, root):
    assert "`llama/config.json`" in refused(tmp_path, "no config.json").hint


def test_an_adapter_alone(root):
    (root / "config.json").unlink()
    (root / "adapter_config.json").write_text("{}")
    assert "BASE+ADAPTER" in refused(root, "no config.json").hint


@pytest.mark.parametrize(
    ("text", "match", "line"),
    [
        (b'{\n"a": 1,\n"b" 2}', "not JSON: Expecting ':' delimiter in column 5", 3),
        (b"", "not JSON", 1),
        (b"[1]", "holds a list", None),
        (b'{"a": "\xff"}', "not JSON: 'utf-8'", None),
        (b'{"a":' + b"[" * 200_000, "not JSON: ", None),
    ],
)
def test_a_broken_config(root, text, match, line):
    (root / "config.json").write_bytes(text)
    place = refused(root, match).place
    assert str(place) == str(root / "config.json") + (f":{line}" if line else "")


def test_a_config_in_any_language(root):
    (root / "config.json").write_bytes('{"name": "Gänseblümchen", "name": "雛菊"}'.encode())
    save(root / SINGLE, a=1)
    assert open_checkpoint(root).config == {"name": "雛菊"}


@pytest.mark.parametrize(
    "index",
    ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}', "[]"],
)
def test_a_broken_index(root, index):
    save(root / SINGLE, a=1)
    (root / INDEX).write_text(index)
    assert INDEX in str(refused(root, "names no tensors|tensor 'a' is in|holds a list").place)


@pytest.mark.parametrize(
    "shard",
    [
        "../other.safetensors",
        "a/../../other.safetensors",
        "/etc/passwd",
        "..",
        "",
        "..\\other.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x",
        "a\0b",
        "a\nb",
    ],
)
def test_an_index_that_leads_outside(root, shard):
    save(root.parent / "other.safetensors", a=1)
    save(root / SINGLE, a=1)
    save_index(root, a=shard)
    problem = refused(root, "tensor 'a' is in ")
    assert problem.expected == "a file inside the folder"


def test_a_shard_name_that_is_too_long(root):
    save_index(root, a="x" * 5000)
    refused(root, "too long|missing shards")


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_link_that_leads_outside(root, tmp_path, name):
    save(root / SINGLE, a=1)
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    refused(root, f"`{name}` is a link to `{tmp_path / 'elsewhere'}`, outside")


def test_an_indexed_shard_that_is_a_link_outside(root, tmp_path):
    save(tmp_path / "elsewhere" / "x.safetensors", a=1)
    (root / "weights").symlink_to(tmp_path / "elsewhere")
    save_index(root, a="weights/x.safetensors")
    refused(root, "outside of the folder")


def test_a_link_inside_the_folder(root):
    save(root / "weights.safetensors", a=1)
    (root / SINGLE).symlink_to("weights.safetensors")
    assert values(open_checkpoint(root)) == {"a": 1}


def test_the_cache_of_the_hub(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    save(blobs / "123", a=1)
    (blobs / "456").write_text("{}")
    snapshot.mkdir(parents=True)
    (snapshot / SINGLE).symlink_to(Path("..", "..", "blobs", "123"))
    (snapshot / "config.json").symlink_to(Path("..", "..", "blobs", "456"))
    (tmp_path / "latest").symlink_to(snapshot)
    for root in (snapshot, tmp_path / "latest"):
        checkpoint = open_checkpoint(root)
        assert values(checkpoint) == {"a": 1}
        assert checkpoint.shards == (root / SINGLE,)


def test_a_link_to_nowhere_is_a_missing_file(root):
    (root / SINGLE).symlink_to(root / "gone")
    refused(root, "no weights")


def test_a_pipe_is_no_weight_file(root):
    os.mkfifo(root / SINGLE)
    refused(root, "no weights")


def test_no_folder_and_a_similar_one(root):
    problem = refused(root.with_name("lama"), "there is no such folder", MissingModelError)
    assert problem.place == str(root.with_name("lama"))
    assert problem.hint == f"`{root}`"


def test_no_folder_and_a_similar_one_above(root):
    problem = refused(root.with_name("lama") / "8b" / "base", "no such folder", MissingModelError)
    assert problem.hint == f"`{root}`"


def test_no_folder_and_a_relative_path(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert refused(Path("lama"), "no such folder", MissingModelError).hint == "`llama`"
    assert refused(Path("lama/8b"), "no such folder", MissingModelError).hint == "`llama`"


def test_no_folder_and_nothing_similar(tmp_path):
    assert refused(tmp_path / "zzz", "no such folder", MissingModelError).hint is None


def test_a_file_instead_of_a_folder(root):
    save(root / SINGLE, a=1)
    problem = refused(root / SINGLE, "a file, not a folder", MissingModelError)
    assert problem.hint == f"`{root}`"
    assert refused(root / "config.json", "a file, not a folder", MissingModelError).hint is None
