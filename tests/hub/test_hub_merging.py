"""Merging models of the hub: from the cache, downloaded, or streamed; over a real server."""

import json
import shutil
import sys
from io import BytesIO

import pytest
import torch
from hub_server import TOKEN
from hub_users import WANTED, model_files, tensors
from safetensors.numpy import load, load_file

from mergekit import MergeOptions, iter_merged
from mergekit.checkpoint.hub import ROOM, local_folder, streaming
from mergekit.errors import MissingModelError
from mergekit.recipe import Address

LINEAR = """\
merge_method: linear
models:
- {model: me/one, parameters: {weight: 1}}
- {model: me/two, parameters: {weight: 1}}
"""
ONE = "merge_method: passthrough\nmodels:\n- {model: me/one%s}\n"


def done(process):
    assert process.returncode == 0, process.stderr
    return process


def refused(process, code=3):
    assert process.returncode == code, process.stdout + process.stderr
    assert "bug in mergekit" not in process.stderr
    return process.stderr


def weight_bytes(log):
    """Bytes of weights that were served."""
    return sum(seen.sent for seen in log if seen.server == "cdn" and seen.method == "GET")


@pytest.fixture
def merged(hub, user):
    """The merge of two models of the hub, downloaded."""
    hub.add("me/one", model_files(1))
    hub.add("me/two", model_files(2, sharded=True))
    done(user.merge(LINEAR, "out"))
    return user.home / "out"


def test_only_what_is_needed_is_downloaded_and_then_only_asked_for(hub, user, merged):
    names = hub.downloads()
    shards = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert set(names) == WANTED | shards | {"model.safetensors.index.json"}
    assert names["model.safetensors"] == len(model_files(1)["model.safetensors"])

    one, two = tensors(1), tensors(2)
    for name, found in load_file(merged / "model.safetensors").items():
        assert abs(found - (one[name] + two[name]) / 2).max() < 1e-6
    assert (merged / "merges.txt").read_bytes() == b"a b\n"
    assert (merged / "chat_template.jinja").is_file()
    assert "license: mit" in (merged / "README.md").read_text()
    assert "me/one" in (merged / "README.md").read_text()

    hub.log.clear()
    done(user.merge(LINEAR, "again"))
    assert {seen.path for seen in hub.log} == {f"/api/models/me/{name}/revision/main" for name in ("one", "two")}
    assert (user.home / "again/model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_streaming_reads_ranges_keeps_no_weights_and_gives_the_same_bytes(hub, user, merged):
    hub.log.clear()
    done(user.merge(LINEAR, "streamed", "--transformers-cache", "elsewhere", "--stream"))
    served = [seen for seen in hub.log if seen.server == "cdn" and seen.sent]
    assert served
    assert all(seen.range for seen in served)
    assert not list((user.home / "elsewhere").rglob("*.safetensors"))
    largest = max(file.stat().st_size for file in (user.home / "elsewhere").rglob("*") if file.is_file())
    assert largest < 10_000
    names = {file.name for file in merged.iterdir()}
    assert {file.name for file in (user.home / "streamed").iterdir()} == names
    for name in names - {"merge_report.json", "README.md", "mergekit_config.yml"}:
        assert (user.home / "streamed" / name).read_bytes() == (merged / name).read_bytes()
    reports = [json.loads((user.home / out / "merge_report.json").read_text()) for out in ("out", "streamed")]
    assert reports[0]["parents"][1]["files"] == reports[1]["parents"][1]["files"]
    assert reports[0]["tensors"] == reports[1]["tensors"]


def test_streaming_a_part_of_a_model_transfers_that_part(hub, user):
    files = model_files(1, times=64)
    wide = load(files["model.safetensors"])
    hub.add("me/one", files)
    recipe = "merge_method: passthrough\nslices:\n- sources:\n  - {model: me/one, layer_range: [1, 2]}\n"
    done(user.merge(recipe, "out", "--stream"))
    first = sum(value.nbytes for name, value in wide.items() if "layers.0." in name)
    rest = sum(value.nbytes for value in wide.values()) - first
    assert first > 7_000_000
    assert rest <= weight_bytes(hub.log) < rest + 200_000
    found = load_file(user.home / "out/model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert (found[name.format(0)] == wide[name.format(1)]).all()


def test_a_method_of_several_passes_streams_to_the_same_bytes(hub, user, merged):
    recipe = "merge_method: ties\nbase_model: me/one\nparameters: {density: 0.5}\nmodels:\n- model: me/two\n"
    done(user.merge(recipe, "local"))
    done_streaming = done(user.merge(recipe, "streamed", "--stream", "--transformers-cache", "elsewhere"))
    assert "`ties` reads large tensors more than once" in done_streaming.stderr
    local, streamed = (user.home / out / "model.safetensors" for out in ("local", "streamed"))
    assert local.read_bytes() == streamed.read_bytes()


def test_merged_tensors_are_streamed_one_by_one(hub, user, merged):
    with user.at_home():
        options = MergeOptions(stream=True, transformers_cache=user.home / "elsewhere")
        found = dict(iter_merged(LINEAR, options=options))
    expected = load_file(merged / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert not list((user.home / "elsewhere").rglob("*.safetensors"))


@pytest.mark.parametrize("room", [30_000, 1 << 20])
def test_blocks_of_any_size_and_little_room_give_the_same_bytes(hub, user, merged, monkeypatch, room):
    monkeypatch.setattr(streaming, "_LARGEST", 10_000)
    monkeypatch.setattr(streaming, "_SMALLEST", 1_000)
    monkeypatch.setattr(streaming, "ROOM", room)
    hub.log.clear()
    done(user.merge(LINEAR, "streamed", "--stream", "--transformers-cache", "elsewhere", "-j", "2"))
    assert (user.home / "streamed/model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    asked = [(seen.path, seen.range) for seen in hub.log if seen.server == "cdn" and seen.sent]
    assert len(asked) > 100
    assert room < 1_000_000 or len(set(asked)) == len(asked)  # where everything fits, nothing is asked for twice


def test_interrupted_transfers_are_resumed(hub, user):
    files = model_files(1, times=32)
    assert len(files["model.safetensors"]) > 12_000_000
    hub.add("me/one", files)
    hub.drops["model.safetensors"] = 11_000_000
    hub.refusals["/revision/main"] = 503
    done(user.merge(ONE % "", "out"))
    expected = load(files["model.safetensors"])
    found = load_file(user.home / "out/model.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)
    ranges = [seen.range for seen in hub.log if seen.server == "cdn" and seen.sent]
    assert len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 10_000_000


@pytest.mark.parametrize("hiccup", ["drop", "refusal", "expired"])
def test_interrupted_reads_are_repeated(hub, user, merged, hiccup):
    if hiccup == "drop":
        hub.drops["/store/"] = 10
    else:
        hub.refusals["/store/"] = 503 if hiccup == "refusal" else 403
    done(user.merge(LINEAR, "streamed", "--stream", "--transformers-cache", "elsewhere"))
    assert not hub.drops
    assert not hub.refusals
    assert (user.home / "streamed/model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_a_server_that_ignores_ranges_is_refused(hub, user):
    hub.add("me/one", model_files(1))
    hub.deaf = True
    message = refused(user.merge(ONE % "", "out", "--stream"))
    assert "does not give parts of files" in message
    assert not (user.home / "out").exists()


def test_offline_the_cache_serves_without_a_request(hub, user, merged):
    hub.log.clear()
    done(user.merge(LINEAR, "offline", offline=True))
    message = refused(user.merge(ONE % ", revision: v2", "out2", offline=True))
    assert "its revision v2 is not there at all" in message
    assert "unsetting HF_HUB_OFFLINE" in message
    assert hub.log == []
    hub.stop()
    process = done(user.merge(LINEAR, "unreachable"))
    assert "in the cache is used" in process.stderr
    for out in ("offline", "unreachable"):
        assert (user.home / out / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_an_incomplete_snapshot_is_not_taken_offline(hub, user, merged):
    sha = hub.repos["me/two"].refs["main"]
    (user.snapshot("me/two", sha) / "model-00002-of-00002.safetensors").unlink()
    message = refused(user.merge(LINEAR, "offline", offline=True))
    assert "missing shards: `model-00002-of-00002.safetensors`" in message
    hub.log.clear()
    done(user.merge(LINEAR, "online"))
    assert set(hub.downloads()) <= {"model-00002-of-00002.safetensors"}


def test_revisions_are_pinned_and_a_commit_is_asked_for_once(hub, user):
    old = hub.add("me/one", model_files(1))
    new = hub.repos["me/one"].commit(model_files(2))
    hub.repos["me/one"].refs["v1"] = old
    for revision, seed in ((old, 1), ("v1", 1), ("main", 2), (new, 2)):
        hub.log.clear()
        done(user.merge(ONE % f", revision: '{revision}'", f"out-{revision}"))
        found = load_file(user.home / f"out-{revision}/model.safetensors")
        assert (found["lm_head.weight"] == tensors(seed)["lm_head.weight"]).all()
    assert hub.log == []  # the last is a commit, all of which came with the branch
    message = refused(user.merge(ONE % ", revision: v9", "out"))
    assert "me/one has no revision v9" in message


def test_private_repositories_need_a_token_which_stays_with_the_hub(hub, user):
    hub.add("me/one", model_files(1), private=True)
    message = refused(user.merge(ONE % "", "out"))
    assert "me/one is neither a folder nor a public repository of the hub" in message
    assert "hf auth login" in message
    assert "recipe.yml:3" in message
    done(user.merge(ONE % "", "out", token=TOKEN))
    hub.log.clear()
    done(user.merge(ONE % "", "streamed", "--stream", "--transformers-cache", "elsewhere", token=TOKEN))
    assert {seen.token for seen in hub.log if seen.server == "cdn"} == {None}
    assert {seen.token for seen in hub.log if seen.server == "api"} == {TOKEN}


def test_what_the_hub_refuses_is_told_apart(hub, user):
    hub.add("me/one", model_files(1), gated=True)
    assert f"asking for access at {hub.endpoint}/me/one" in refused(user.merge(ONE % "", "out"))
    hub.add("me/llama-7b", model_files(1))
    message = refused(user.merge("merge_method: passthrough\nmodels:\n- model: me/llama-7\n", "out", token=TOKEN))
    assert "neither a folder nor a repository of the hub that your token may see" in message
    assert "try `me/llama-7b`" in message
    hub.refusals["/revision/"] = 403
    assert "refuses access to me/one (status 403)" in refused(user.merge(ONE % "", "out"))


def test_without_a_network_the_message_says_so(hub, user):
    hub.stop()
    assert "there is no such folder, and the hub cannot be reached for me/one" in refused(user.merge(ONE % "", "out"))


def test_repositories_without_safetensors(hub, user):
    files = {name: data for name, data in model_files(1).items() if "safetensors" not in name}
    hub.add("me/none", {name: data for name, data in files.items() if not name.endswith(".bin")})
    message = refused(user.merge("merge_method: passthrough\nmodels:\n- model: me/none\n", "out"))
    assert "no weights that can be read" in message
    hub.add("me/two", {"config.json": b"{}", "a.Q4.gguf": b"x", "b.Q8.gguf": b"x"})
    message = refused(user.merge("merge_method: passthrough\nmodels:\n- model: me/two\n", "out"))
    assert "2 GGUF files" in message
    assert not [name for name in hub.downloads() if name.endswith((".gguf", ".pth"))]


@pytest.mark.parametrize(
    ("settings", "why"), [(None, "no safetensors"), ({"quant_method": "bitsandbytes"}, "bitsandbytes")]
)
def test_what_cannot_be_streamed_is_downloaded(hub, user, settings, why):
    files = model_files(1)
    if settings:
        config = json.loads(files["config.json"]) | {"quantization_config": settings}
        files["config.json"] = json.dumps(config).encode()
    else:
        weights = {name: torch.from_numpy(value) for name, value in tensors(1).items()}
        pickled = BytesIO()
        torch.save(weights, pickled)
        files = {name: data for name, data in files.items() if "safetensors" not in name}
        files["pytorch_model.bin"] = pickled.getvalue()
    hub.add("me/one", files)
    process = done(user.merge(ONE % "", "out", "--stream"))
    assert "downloaded, not streamed" in process.stderr
    assert why in process.stderr
    found = load_file(user.home / "out/model.safetensors")
    assert all((found[name] == value).all() for name, value in tensors(1).items())


def test_blobs_that_repositories_share_belong_to_the_cache(hub, user):
    """Newer versions of huggingface_hub keep large files once for all repositories."""
    sha = hub.add("me/one", model_files(1))
    done(user.merge(ONE % "", "out"))
    blob = (user.snapshot("me/one", sha) / "model.safetensors").resolve()
    shared = user.cache / "blobs" / "ab" / blob.name
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    done(user.merge(ONE % "", "again", offline=True))


def test_a_disk_without_room_is_met_before_the_download(hub, user, monkeypatch):
    hub.add("me/one", model_files(1))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: real(folder)._replace(free=100_000))
    message = refused(user.merge(ONE % "", "out"))
    assert "no space to download me/one: 413024 bytes are needed, 100000 are free" in message
    assert "`--transformers-cache`" in message
    assert "model.safetensors" not in hub.downloads()


def test_an_adapter_is_fetched_without_the_rest(hub, user):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x" * 9, "adapter_model.bin": b"x"}
    hub.add("me/lora", model_files(1) | files)
    with user.at_home():
        folder = local_folder(Address("me/lora"), adapter=True)
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    hub.log.clear()
    with user.at_home(offline=True):
        assert local_folder(Address("me/lora"), adapter=True) == folder
        with pytest.raises(MissingModelError, match=r"without config\.json"):
            local_folder(Address("me/lora"))
    assert hub.log == []


def test_the_environment_decides(hub, user):
    """A process of its own for each: the library reads the environment when it is loaded."""
    hub.add("me/one", model_files(1), private=True)
    (user.home / "recipe.yml").write_text(ONE % "")
    command = ("-W", "error", "-m", "mergekit", "merge", "recipe.yml")
    process = done(user.process(*command, "out", HF_TOKEN=TOKEN))
    assert process.stderr == ""
    assert set(hub.downloads()) == WANTED
    hub.stop()
    done(user.process(*command, "offline", HF_HUB_OFFLINE="1"))
    assert (user.home / "offline/model.safetensors").read_bytes() == (user.home / "out/model.safetensors").read_bytes()


def test_without_the_library_the_extra_is_named(user, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "`pip install mergekit[hub]`" in refused(user.merge(ONE % "", "out"))


def test_local_folders_need_neither_library_nor_network(hub, user, monkeypatch):
    folder = user.home / "models" / "one"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(model_files(1)[name])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done(user.merge("merge_method: passthrough\nmodels:\n- model: models/one\n", "out"))
    assert hub.log == []


def test_a_folder_of_nearly_that_name_is_offered(hub, user):
    (user.home / "me" / "ones").mkdir(parents=True)
    message = refused(user.merge(ONE % "", "out", token=TOKEN))
    assert "try `me/ones`" in message


MIXTURE = """\
base_model: me/one
gate_mode: random
experts: [{source_model: me/one}, {source_model: me/two}]
"""


def test_a_mixture_is_streamed_too_and_its_plan_counts_the_room(hub, user):
    hub.add("me/one", model_files(1))
    hub.add("me/two", model_files(2, sharded=True))
    (user.home / "moe.yml").write_text(MIXTURE)
    flags = [(), ("--stream", "--transformers-cache", "elsewhere")]
    told = [json.loads(done(user.mergekit("moe", "moe.yml", "out", "--plan", "--json", *own)).stdout) for own in flags]
    assert told[1]["plan"]["memory"] == told[0]["plan"]["memory"] + ROOM
    for name, own in zip(("out", "streamed"), flags, strict=True):
        done(user.mergekit("moe", "moe.yml", name, *own))
    assert not list((user.home / "elsewhere").rglob("*.safetensors"))
    weights = [(user.home / name / "model.safetensors").read_bytes() for name in ("out", "streamed")]
    assert weights[0] == weights[1]
