"""Files of every kind, as torch and safetensors write them, and the outputs."""

import hashlib
import json

import pytest
import torch
from raw_samples import OPTIONS, merge, network, numbers, planned, recipe, result, write, write_shards
from safetensors import safe_open
from safetensors.torch import load_file

from mergekit.errors import OutputError, RecipeError
from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions


def legacy(file, tensors):
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def wrapped(key):
    def save(file, tensors):
        optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]}
        torch.save({"epoch": 3, "step": torch.tensor(9), key: tensors, "optimizer": optimizer}, file)

    return save


def shared(file, tensors):
    """Views of one storage, transposed or not."""
    pool = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    parts = pool.split([tensor.numel() for tensor in tensors.values()])
    views = {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
    views["head.weight"] = tensors["head.weight"].t().contiguous().t()
    torch.save(views, file)


WAYS = {
    "a.pt": write,
    "a.pth": write,
    "a.bin": write,
    "a.ckpt": write,
    "a.safetensors": write,
    "legacy.pt": legacy,
    "shared.pt": shared,
    "wrapped.ckpt": wrapped("state_dict"),
    "model.ckpt": wrapped("model"),
    "module.pt": wrapped("module"),
    "model_state_dict.pt": wrapped("model_state_dict"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_every_kind_of_file(tmp_path, name, dtype):
    a, b = network(1, dtype), network(2, dtype)
    WAYS[name](tmp_path / name, a)
    other = write(tmp_path / "other.safetensors", b)
    merge(recipe("linear", [tmp_path / name, other], out_dtype="float32"), tmp_path / "out")
    merged = result(tmp_path / "out")
    assert merged.keys() == a.keys()
    for tensor in a:
        assert torch.allclose(merged[tensor], (a[tensor].float() + b[tensor].float()) / 2, rtol=1e-6), tensor


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_o2_a_wrapper_is_opened_and_the_optimizer_is_not_read(tmp_path, key):
    wrapped(key)(tmp_path / "a.ckpt", network(1))
    plan = planned(recipe("linear", [tmp_path / "a.ckpt", write(tmp_path / "b.pt", network(2))]))
    assert [task.out.name for task in plan.tasks] == list(network(1))
    notice = f"{tmp_path / 'a.ckpt'}: only `{key}` is read, not `epoch`, `step`, `optimizer` beside it"
    assert plan.findings.notices == [notice]
    assert plan.findings.warnings == []


def test_the_module_wins_over_averages_beside_it(tmp_path):
    torch.save({"ema": {"w": torch.zeros(2)}, "model": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    merge(recipe("linear", [tmp_path / "a.pt"]), tmp_path / "out")
    assert torch.equal(result(tmp_path / "out")["w"], torch.ones(2))


def test_a_flat_state_dict_with_a_module_called_model(tmp_path):
    tensors = {"model": numbers(1, 2), "module": numbers(2, 2)}
    merge(recipe("linear", [write(tmp_path / "a.pt", tensors)]), tmp_path / "out")
    assert result(tmp_path / "out").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("stem", "suffix"),
    [("model", ".safetensors"), ("pytorch_model", ".bin"), ("diffusion_pytorch_model.fp16", ".safetensors")],
)
@pytest.mark.parametrize("named", ["index", "folder"])
def test_shards(tmp_path, stem, suffix, named):
    index = write_shards(tmp_path / "shards", stem, suffix, network(1))
    merge(recipe("linear", [index if named == "index" else index.parent]), tmp_path / "out")
    merged = result(tmp_path / "out")
    assert all(torch.equal(merged[name], tensor) for name, tensor in network(1).items())
    [parent] = json.loads((tmp_path / "out" / "merge_report.json").read_text())["parents"]
    assert len(parent["files"]) == 2


def test_a_missing_shard(tmp_path):
    index = write_shards(tmp_path / "shards", "weights", ".pt", network(1))
    (tmp_path / "shards" / "weights-00002-of-00002.pt").unlink()
    with pytest.raises(RecipeError, match=r"missing shards: `weights-00002-of-00002\.pt`"):
        planned(recipe("linear", [index]))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "run-7.ckpt"])
def test_a_folder_with_one_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / name, network(1))
    merge(recipe("linear", [tmp_path / "folder"]), tmp_path / "out")
    assert result(tmp_path / "out").keys() == network(1).keys()


def test_a_folder_with_several_files(tmp_path):
    write(tmp_path / "one.pt", network(1))
    write(tmp_path / "two.pt", network(2))
    with pytest.raises(RecipeError) as caught:
        planned(recipe("linear", [tmp_path]))
    [problem] = caught.value.problems
    assert problem.what == f"{tmp_path}: there are 2 weight files in the folder: `one.pt`, `two.pt`"
    assert problem.hint == f"`{tmp_path / 'one.pt'}`"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.pt", b"not a pickle", "neither a zip archive nor"),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      x", "more than its header promises"),
        ("a.gguf", b"GGUF", "GGUF files are not read here"),
        ("a.bin.index.json", b"[]", "holds a list"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=what):
        planned(recipe("linear", [tmp_path / name]))


def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"w": torch.ones(2), "args": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(RecipeError, match="nothing was run"):
        planned(recipe("linear", [tmp_path / "a.pt"]))


@pytest.fixture
def text(tmp_path):
    files = [write(tmp_path / f"{seed}.pt", network(seed)) for seed in (1, 2)]
    return recipe("linear", files)


def test_a_folder_holds_recipe_report_and_card(text, tmp_path):
    report = merge(text, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "mergekit_config.yml",
        "merge_report.json",
        "README.md",
    }
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text()) == report
    assert [parent["role"] for parent in report["parents"]] == [["merged"], ["merged"]]
    assert "transformers" not in (tmp_path / "out" / "README.md").read_text()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["mergekit_recipe"] == hashlib.sha256(text.encode()).hexdigest()


def test_shards_of_the_output(text, tmp_path):
    merge(text, tmp_path / "out", options=JobOptions(PlanOptions(shard_bytes=600, workers=2), model_card=False))
    places = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert list(places) == list(network(1))
    merged = {name: load_file(tmp_path / "out" / file)[name] for name, file in places.items()}
    assert torch.equal(merged["conv.weight"], (network(1)["conv.weight"] + network(2)["conv.weight"]) / 2)
    assert len(set(places.values())) == 3
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_single_file(text, tmp_path):
    small = JobOptions(PlanOptions(shard_bytes=100, workers=2))
    report = merge(text, tmp_path / "new" / "merged.safetensors", options=small)
    merge(text, tmp_path / "out")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["merged.safetensors"]
    assert (tmp_path / "new" / "merged.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    assert report["totals"]["shards"] == 1


def test_a_single_file_is_replaced_only_if_asked(text, tmp_path):
    out = write(tmp_path / "out.safetensors", {"old": torch.ones(1)})
    with pytest.raises(OutputError, match="there already"):
        merge(text, out)
    assert load_file(out).keys() == {"old"}
    merge(text, out, options=JobOptions(OPTIONS.plan, overwrite=True))
    assert load_file(out).keys() == network(1).keys()
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="the output is a folder"):
        merge(text, tmp_path / "folder.safetensors")


def test_a_failure_leaves_what_was_there(tmp_path):
    files = [write(tmp_path / "a.pt", network(1)), write(tmp_path / "b.pt", network(2))]
    write(files[1], network(2) | {"norm.weight": torch.full((4,), float("inf"))})
    out = write(tmp_path / "out.safetensors", {"old": torch.ones(1)})
    with pytest.raises(Exception, match="infinite"):
        merge(recipe("linear", files), out, options=JobOptions(OPTIONS.plan, overwrite=True))
    assert load_file(out).keys() == {"old"}
    assert {file.name for file in tmp_path.iterdir()} == {"a.pt", "b.pt", "out.safetensors"}


@pytest.mark.parametrize("inside", ["model.safetensors", "."])
def test_an_input_is_never_replaced(tmp_path, inside):
    (tmp_path / "in").mkdir()
    file = write(tmp_path / "in" / "model.safetensors", network(1))
    text = recipe("linear", [tmp_path / "in"])
    (tmp_path / "in" / "mergekit_config.yml").write_text(text)
    with pytest.raises(OutputError, match="would replace one of the models"):
        merge(text, tmp_path / "in" / inside, options=JobOptions(OPTIONS.plan, overwrite=True))
    assert load_file(file).keys() == network(1).keys()
