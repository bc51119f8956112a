"""The output folder: complete or not there at all, with the donor's files, readable by everyone."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_checkpoints import INDEX, llama_config, merge, octets, read_model, recipe, write_llama, write_model

from mergekit.checkpoint.output import output_folder
from mergekit.errors import CheckpointError, HeaderError, MergekitError, OutputError, RecipeError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def models(tmp_path):
    """The models a and b."""
    root = tmp_path / "models"
    for seed, name in enumerate("ab"):
        write_llama(root / name, seed)
    return root


@pytest.fixture
def average(models):
    return recipe("linear", [models / "a", models / "b"])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_nothing_left(out):
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)] == []


# Where it may be written


def test_a_merge_leaves_one_folder_and_nothing_beside_it(average, out):
    merge(average, out)
    assert names(out) == ["README.md", "config.json", "merge_report.json", "mergekit_config.yml", "model.safetensors"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["models", "out"]


def test_missing_parents_are_made(average, out):
    merge(average, out / "deep" / "er")
    assert (out / "deep" / "er" / "model.safetensors").exists()


def test_an_empty_folder_is_taken(average, out):
    out.mkdir()
    merge(average, out)
    assert "model.safetensors" in names(out)


def test_a_folder_with_something_in_it_is_refused(average, out):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="the output folder is not empty"):
        merge(average, out)
    assert names(out) == ["thesis.tex"]


def test_a_file_is_refused(average, out):
    out.write_text("a file")
    with pytest.raises(OutputError, match="the output is a file"):
        merge(average, out, overwrite=True)
    assert out.read_text() == "a file"


def test_overwrite_replaces_the_whole_folder(average, out):
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("stale")
    (out / "config.json").write_text("{}")
    merge(average, out, overwrite=True)
    assert "model-00001-of-00002.safetensors" not in names(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["models", "out"]


def test_overwrite_keeps_the_old_folder_when_the_merge_fails(models, out):
    out.mkdir()
    (out / "config.json").write_text("old")
    with pytest.raises(RecipeError):
        merge(recipe("linear", [models / "nobody"]), out, overwrite=True)
    assert names(out) == ["config.json"]


def test_overwrite_replaces_nothing_but_models(average, out, monkeypatch):
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="not a model"):
        merge(average, out, overwrite=True)
    (out / "config.json").write_text("{}")
    monkeypatch.chdir(out)
    with pytest.raises(OutputError, match="the folder you work in"):
        merge(average, out, overwrite=True)
    assert names(out) == ["config.json", "thesis.tex"]


def test_a_folder_of_somebody_else_is_not_swept_away(average, out):
    for suffix in (".partial", ".replaced"):
        out.with_name(out.name + suffix).mkdir()
        (out.with_name(out.name + suffix) / "precious").write_text("mine")
    with pytest.raises(OutputError, match="not from an interrupted merge"):
        merge(average, out)
    shutil.rmtree(out.with_name("out.partial"))
    merge(average, out)
    merge(average, out, overwrite=True)
    assert names(out.with_name("out.replaced")) == ["precious"]


def test_only_one_process_writes_an_output(average, out):
    with output_folder(out, False) as partial:
        (partial / "weights").write_text("half")
        with pytest.raises(OutputError, match="another process is writing"):
            merge(average, out)
        assert (partial / "weights").read_text() == "half"
    assert names(out) == ["weights"]


def test_an_output_that_appears_meanwhile_is_not_replaced(models, out):
    with pytest.raises(OutputError, match="not empty"), output_folder(out, False):
        shutil.copytree(out.parent / "models" / "a", out)
    assert "model.safetensors" in names(out)
    assert not out.with_name("out.partial").exists()


def test_an_earlier_output_inside_the_donor_is_not_copied(models, average):
    donor = models / "a"
    merge(average, donor / "out1")
    (donor / "self").symlink_to(donor)
    merge(average, donor / "out2")
    assert not (donor / "out2" / "out1").exists()
    assert not (donor / "out2" / "self").exists()


def test_more_shards_than_files_may_be_open(models, out):
    """The limit is raised as far as the system allows; beyond that the merge is refused before anything is written."""
    program = (
        "import resource, sys; from pathlib import Path; from mergekit.merging import *; from mergekit.plan import *\n"
        "soft, hard = (int(part) for part in sys.argv[3:]); resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "merge_recipe(sys.argv[1], Path(sys.argv[2]), options=JobOptions(plan=PlanOptions(shard_bytes=1)))"
    )
    text = recipe("linear", [models / "a", models / "b"])
    run = [sys.executable, "-c", program, text]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([*run, str(out), "20", "4096"], env=environment, check=True)
    assert len(list(out.glob("*.safetensors"))) > 20
    done = subprocess.run(
        [*run, str(out.with_name("no")), "20", "30"], env=environment, stderr=subprocess.PIPE, check=False
    )
    assert b"larger shards" in done.stderr
    assert not out.with_name("no").exists()


def test_an_input_is_never_the_output(models, average):
    before = names(models)
    with pytest.raises(OutputError, match="models to be merged"):
        merge(average, models / "a", overwrite=True)
    assert names(models) == before


def test_a_folder_that_holds_an_input_is_never_replaced(models, average):
    (models / "config.json").write_text("{}")
    before = names(models)
    with pytest.raises(OutputError, match="models to be merged"):
        merge(average, models, overwrite=True)
    assert names(models) == before


def test_an_input_that_is_called_like_the_unfinished_output_is_kept(models, out):
    write_llama(models / "out.partial", 3)
    with pytest.raises(OutputError, match="models to be merged"):
        merge(recipe("linear", [models / "out.partial"]), models / "out")
    assert "out.partial/model.safetensors" in names(models)


def test_the_rest_of_an_interrupted_merge_is_swept_away(average, out):
    partial = out.with_name("out.partial")
    partial.mkdir()
    (partial / "model-00001-of-00009.safetensors").write_text("half")
    (partial / ".mergekit-writes-here").touch()
    merge(average, out)
    assert not partial.exists()
    assert "model-00001-of-00009.safetensors" not in names(out)


# What can go wrong


def test_a_corrupt_shard_is_found_before_anything_is_written(models, average, out):
    file = models / "b" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(RecipeError, match="cut short") as caught:
        merge(average, out)
    assert "merge.yml:3" in str(caught.value) or "merge.yml:4" in str(caught.value)
    assert caught.value.exit_code != 0
    assert_nothing_left(out)


def test_a_header_of_noise_is_found_before_anything_is_written(models, average, out):
    (models / "b" / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    with pytest.raises((RecipeError, HeaderError)):
        merge(average, out)
    assert_nothing_left(out)


class Vandal:
    """Cuts a file when the merge has been planned."""

    def __init__(self, file):
        self.file = file

    def planned(self, plan):
        os.truncate(self.file, self.file.stat().st_size - 10)

    def advance(self, nbytes):
        pass


def test_a_file_that_shrinks_after_planning(models, average, out):
    with pytest.raises(CheckpointError, match="in the middle of a tensor"):
        merge_recipe(average, out, progress=Vandal(models / "b" / "model.safetensors"))
    assert_nothing_left(out)


class Interrupted:
    def planned(self, plan):
        pass

    def advance(self, nbytes):
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(average, out):
    with pytest.raises(KeyboardInterrupt):
        merge_recipe(average, out, progress=Interrupted())
    assert_nothing_left(out)


def run_merge(text, out, folder, **settings):
    """`python -m mergekit.cli.main yaml` in a process of its own."""
    (folder / "merge.yml").write_text(text)
    command = [sys.executable, "-m", "mergekit.cli.main", "yaml", str(folder / "merge.yml"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False, **settings)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(average, small_disk, out, tmp_path):
    """Where nothing can be mounted, a limit on the size of files stands in."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    target = small_disk / "out" if small_disk else out
    done = run_merge(average, target, tmp_path, preexec_fn=None if small_disk else limit)
    assert done.returncode == OutputError.exit_code == 5
    assert ("are needed on this disk" if small_disk else "larger than the system allows") in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(target)


def test_a_limit_on_the_size_of_files(average, out, tmp_path):
    limit = 65536
    done = run_merge(
        average, out, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode == 5
    assert "larger than the system allows" in done.stderr
    assert_nothing_left(out)


# The donor's files


def furnish(folder):
    """What lies in model folders beside the weights: what a merge takes over, and what it does not."""
    taken = {
        "generation_config.json": '{"eos_token_id": 2}',
        "tokenizer.json": '{"version": "1.0",  "unusual": "spacing\\u00e9"}',
        "tokenizer_config.json": '{"model_max_length": 64}',
        "special_tokens_map.json": "{}",
        "merges.txt": "a b\n",
        "vocab.json": '{"a": 0}',
        "modeling_own.py": "raise SystemExit('never run')\n",
        "1_Pooling/config.json": '{"pooling": true}',
        "preprocessor_config.json": "{}",
        "LICENSE": "a licence",
    }
    left = {
        "pytorch_model.bin": "pickled",
        "optimizer.pt": "state",
        "training_args.bin": "arguments",
        "trainer_state.json": "{}",
        ".git/HEAD": "ref",
        ".gitattributes": "*",
        "checkpoint-100/config.json": "{}",
        "README.md": "the donor's own card",
    }
    for name, text in {**taken, **left}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return taken, left


def test_the_donors_files_are_taken_over_byte_for_byte(models, average, out):
    taken, left = furnish(models / "a")
    merge(average, out)
    assert {name: (out / name).read_bytes() for name in taken} == {name: text.encode() for name, text in taken.items()}
    assert set(left) & set(names(out)) == {"README.md"}
    assert "the donor's own card" not in (out / "README.md").read_text()


def test_the_base_is_the_donor(models, out):
    (models / "b" / "generation_config.json").write_text('{"from": "b"}')
    merge(recipe("task_arithmetic", [models / "a"], base_model=str(models / "b")), out)
    assert (out / "generation_config.json").read_text() == '{"from": "b"}'


def test_tokenizers_can_be_left_out(models, average, out):
    furnish(models / "a")
    merge(average, out, copy_tokenizer=False)
    assert not {"tokenizer.json", "tokenizer_config.json", "merges.txt", "vocab.json"} & set(names(out))
    assert {"generation_config.json", "modeling_own.py"} <= set(names(out))


LITERAL = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def chat_files(folder, template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "model_max_length": 64}))


@pytest.mark.parametrize("wanted", ["chatml", LITERAL, "auto"])
def test_a_chat_template_is_the_same_wherever_it_stands(wanted, models, out):
    chat_files(models / "a", "the template of a")
    chat_files(models / "b", LITERAL)
    write_llama(models / "c", 3)
    chat_files(models / "c", LITERAL)
    entries = [models / name for name in "abc"]
    merge(recipe("linear", entries, chat_template=wanted), out)
    template = (out / "chat_template.jinja").read_text()
    assert "<|im_start|>" in template if wanted == "chatml" else template == LITERAL
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {"chat_template": template, "model_max_length": 64}


def test_without_a_wish_the_chat_template_is_the_donors(models, average, out):
    (models / "a" / "chat_template.jinja").write_text("template of a")
    merge(average, out)
    assert (out / "chat_template.jinja").read_text() == "template of a"


# What is written


def test_config_json_stays_as_it_is_where_nothing_changes(models, average, out):
    text = (models / "a" / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size" :  32')
    written = text.replace("\n", "\r\n").encode()
    (models / "a" / "config.json").write_bytes(written)
    merge(average, out)
    assert (out / "config.json").read_bytes() == written


def test_config_json_says_the_dtype_that_is_written(models, out):
    merge(recipe("linear", [models / "a", models / "b"], out_dtype="bfloat16"), out)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (models / "a", out))
    assert after == {**before, "torch_dtype": "bfloat16"}
    assert {tensor.dtype for tensor in read_model(out).values()} == {torch.bfloat16}


def test_half_inputs_of_two_kinds_are_written_in_float32_and_said_to_be(models, out):
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        write_llama(models / name, 0, dtype)
    merge(recipe("linear", [models / "bf16", models / "f16"]), out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    assert {tensor.dtype for tensor in read_model(out).values()} == {torch.float32}


def test_several_shards_have_an_index_that_is_right(models, average, out):
    merge(average, out / "one", shard_bytes=0)
    merge(average, out / "many", shard_bytes=20_000)
    one, many = read_model(out / "one"), read_model(out / "many")
    assert {name: octets(tensor) for name, tensor in one.items()} == {
        name: octets(tensor) for name, tensor in many.items()
    }
    assert not (out / "one" / INDEX).exists()
    index = json.loads((out / "many" / INDEX).read_text())
    files = sorted(path.name for path in (out / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in many.values())
    assert index["weight_map"].keys() == many.keys()
    for file in files:
        with safe_open(out / "many" / file, "pt") as opened:
            inside = list(opened.keys())
            assert opened.metadata()["format"] == "pt"
            assert {name for name, home in index["weight_map"].items() if home == file} == set(inside)
            assert sum(many[name].nbytes for name in inside) <= 20_000 or len(inside) == 1


def test_inputs_in_shards_are_the_same_as_in_one_file(models, average, out, tmp_path):
    for name in "ab":
        tensors = read_model(models / name)
        write_model(tmp_path / "sharded" / name, tensors, llama_config(), shards=3)
    merge(average, out / "plain")
    merge(recipe("linear", [tmp_path / "sharded" / name for name in "ab"]), out / "sharded")
    plain, sharded = read_model(out / "plain"), read_model(out / "sharded")
    assert {name: octets(tensor) for name, tensor in plain.items()} == {
        name: octets(tensor) for name, tensor in sharded.items()
    }


def test_the_recipe_is_kept_verbatim(models, average, out):
    text = f"# why: because\n{average}\n#end\n"
    merge(text, out)
    assert (out / "mergekit_config.yml").read_text() == text
    assert yaml.safe_load(text) == yaml.safe_load((out / "mergekit_config.yml").read_text())


def test_the_card_can_be_left_out_and_the_recipe_stays(average, out):
    merge_recipe(average, out, options=JobOptions(PlanOptions(), model_card=False))
    assert "README.md" not in names(out)
    assert "mergekit_config.yml" in names(out)


def test_the_report_is_what_is_returned(average, out):
    watch = merge(average, out)
    assert json.loads((out / "merge_report.json").read_text()) == json.loads(json.dumps(watch.report))


@pytest.mark.parametrize("text", ["", "merge_method: linear", "merge_method: lnear\nmodels: [{model: a}]", "[1, 2"])
def test_a_recipe_that_is_none_makes_no_folder(text, out):
    with pytest.raises(MergekitError):
        merge(text, out)
    assert_nothing_left(out)
