"""Looking at a merge of models of the hub before they are downloaded."""

import json

import pytest
from hub_users import model_files

LINEAR = """\
merge_method: linear
models:
- {model: me/one, parameters: {weight: 1}}
- {model: me/two, parameters: {weight: 1}}
"""


@pytest.fixture
def look(hub, user):
    """Run a command on a recipe for two models of the hub."""
    hub.add("me/one", model_files(1))
    hub.add("me/two", model_files(2, sharded=True))
    (user.home / "recipe.yml").write_text(LINEAR)
    return lambda command, *flags: user.mergekit(command, "recipe.yml", *flags)


@pytest.mark.parametrize("command", ["check", "plan", "explain"])
def test_no_weight_is_downloaded(command, look, hub, user):
    answer = look(command)
    assert answer.returncode == 0, answer.stderr
    assert "note: the merge will download me/one: 0.4 MB\n" in answer.stderr
    assert "read from the hub while merging" not in answer.stderr
    assert not list((user.home / "hf").rglob("*.safetensors"))
    served = sum(seen.sent for seen in hub.log if seen.server == "cdn" and seen.method == "GET")
    assert served < len(model_files(1)["model.safetensors"])


def test_downloads_need_room_too(look, user):
    record = json.loads(look("check", "--json", "out").stdout)["check"]
    (disk,) = record["disks"]
    downloads = sum(
        len(content)
        for files in (model_files(1), model_files(2, sharded=True))
        for name, content in files.items()
        if name.startswith("model") and name.endswith(".safetensors")
    )
    assert record["bytes_written"] + downloads < disk["needed"] < record["bytes_written"] + downloads + 100_000
    streamed = json.loads(look("check", "--json", "--stream", "out").stdout)["check"]["disks"][0]
    assert streamed["needed"] == disk["needed"] - downloads


def test_what_is_downloaded_already_is_not_told(look, user):
    (user.home / "first.yml").write_text(LINEAR)
    assert user.mergekit("merge", "first.yml", "out").returncode == 0
    assert "will download" not in look("check").stderr


def test_streaming_is_told_as_the_merge_tells_it(look):
    assert "read from the hub while merging, not downloaded" in look("check", "--stream").stderr
