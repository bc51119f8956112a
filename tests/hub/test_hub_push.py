"""``mergekit push``: verified, uploaded, resumed, and the same when it comes back."""

import json

import pytest
from hub_server import TOKEN
from hub_users import model_files

# Said by the HTTP library to huggingface_hub, when that uploads without its own protocol.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ONE = "merge_method: passthrough\nmodels:\n- model: me/one\n"


def test_what_was_pushed_comes_back_and_a_second_push_sends_nothing(hub, user):
    hub.add("me/one", model_files(1))
    assert user.merge(ONE, "out").returncode == 0
    out = user.home / "out"
    refusal = user.mergekit("push", "out", "me/merge")
    assert refusal.returncode == 5
    assert "hf auth login" in refusal.stderr

    hub.refusals["/commit/main"] = 403
    broken = user.mergekit("push", "out", "me/merge", "--private", token=TOKEN)
    assert broken.returncode == 5
    assert "refuses access to me/merge (status 403)" in broken.stderr
    assert len(uploads(hub)) == 1

    hub.log.clear()
    process = user.mergekit("push", "out", "me/merge", "--private", "--json", token=TOKEN)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["url"] == f"{hub.endpoint}/me/merge"
    assert uploads(hub) == []  # the weights are there from the broken one
    repo = hub.repos["me/merge"]
    assert repo.private
    files = repo.commits[repo.refs["main"]]
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == contents(out)

    commits = len(repo.commits)
    assert user.mergekit("push", "out", "me/merge", token=TOKEN).returncode == 0
    assert len(repo.commits) == commits

    recipe = "merge_method: passthrough\nmodels:\n- model: me/merge\n"
    assert user.merge(recipe, "back", token=TOKEN).returncode == 0
    copy = user.snapshot("me/merge", repo.refs["main"])
    assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_branch_is_made_and_a_public_repository_is_not_taken_for_a_private_one(hub, user):
    hub.add("me/one", model_files(1))
    hub.add("me/public", {"README.md": b"hello"})
    assert user.merge(ONE, "out").returncode == 0
    process = user.mergekit("push", "out", "me/public", "--private", token=TOKEN)
    assert process.returncode == 5
    assert "it is public" in process.stderr
    process = user.mergekit("push", "out", "me/public", "--revision", "merge", "--message", "Merged", token=TOKEN)
    assert process.returncode == 0, process.stderr
    assert f"{hub.endpoint}/me/public/tree/merge" in process.stdout
    repo = hub.repos["me/public"]
    assert repo.commits[repo.refs["main"]] == {"README.md": b"hello"}
    assert contents(user.home / "out").items() <= repo.commits[repo.refs["merge"]].items()


def test_a_folder_that_is_not_what_its_report_says_is_not_uploaded(hub, user):
    hub.add("me/one", model_files(1))
    assert user.merge(ONE, "out").returncode == 0
    with (user.home / "out/model.safetensors").open("r+b") as weights:
        weights.seek(-40, 2)
        weights.write(b"\0" * 40)
    hub.log.clear()
    process = user.mergekit("push", "out", "me/merge", token=TOKEN)
    assert process.returncode == 9
    assert hub.log == []


def uploads(hub):
    return [seen for seen in hub.log if seen.path.startswith("/upload/") and seen.method == "PUT"]


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
