"""What a pipeline may say, in which order it is done, and what is left alone."""

import json

import pytest
import yaml
from multi_models import states, weights, write_model
from safetensors.numpy import load_file

from mergekit.errors import OutputError, RecipeError, VerificationError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.multi import MultiOptions, read_pipeline, run_pipeline
from mergekit.plan import PlanOptions
from mergekit.report import verify_folder
from mergekit.reproducing import reproduce


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_model(folder / name, seed)
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def linear(models, *names, **more):
    entries = [{"model": str(models / name) if (models / name).is_dir() else name} for name in names]
    return {**more, "merge_method": "linear", "models": entries}


def piped(*documents):
    return yaml.safe_dump_all(documents, sort_keys=False)


def diamond(models):
    """Two merges of one merge, and the last one of both."""
    return piped(
        linear(models, "a", "b", name="top"),
        linear(models, "top", "a", name="left"),
        linear(models, "top", "c", name="right"),
        linear(models, "left", "right"),
    )


def run(text, tmp_path, **more):
    return run_pipeline(text, file="p.yml", options=MultiOptions(tmp_path / "out", tmp_path / "stages", **more))


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def problems(text):
    with pytest.raises(RecipeError) as caught:
        read_pipeline(text, file="p.yml")
    return [str(problem) for problem in caught.value.problems]


def test_o1_a_diamond_is_made_in_order_and_gives_what_the_merges_one_by_one_give(models, tmp_path):
    done = run(diamond(models), tmp_path)
    assert states(done) == {"top": "written", "left": "on the way", "right": "on the way", "": "written"}
    assert names(tmp_path / "stages") == ["top"]
    places = {name: str(tmp_path / "by-hand" / name) for name in ("top", "left", "right", "last")}
    for document, place in zip(yaml.safe_load_all(diamond(models)), places.values(), strict=True):
        document.pop("name", None)
        for entry in document["models"]:
            entry["model"] = places.get(entry["model"], entry["model"])
        merge_recipe(yaml.safe_dump(document), tmp_path / place)
    by_hand, ours = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / places["last"], tmp_path / "out")
    )
    assert by_hand.keys() == ours.keys()
    assert all((by_hand[name] == ours[name]).all() for name in ours)
    assert verify_folder(tmp_path / "out").ok


def test_o1_a_cycle_is_an_error_that_names_it(models):
    text = piped(
        linear(models, "a", "two", name="one"), linear(models, "three", name="two"), linear(models, "one", name="three")
    )
    [problem] = problems(text)
    assert "the merges need each other: one → two → three → one" in problem
    assert "at models[1].model (p.yml:5)" in problem
    [problem] = problems(piped(linear(models, "a", "one", name="one")))
    assert "one → one" in problem


def test_o1_a_name_that_two_merges_have_is_an_error(models):
    [problem] = problems(piped(linear(models, "a", name="one"), linear(models, "b", name="one")))
    assert "two merges are called `one`; the other one's name is in line 1" in problem
    assert "name (p.yml:6)" in problem


def test_o1_at_most_one_merge_has_no_name(models, tmp_path):
    [problem] = problems(piped(linear(models, "a"), linear(models, "b")))
    assert "two merges have no name; the other one begins in line 1" in problem
    assert "p.yml:4" in problem
    with pytest.raises(OutputError, match="nothing says where the merge without a name is written"):
        run_pipeline(piped(linear(models, "a")), options=MultiOptions(intermediate=tmp_path / "stages"))


def test_o1_what_is_up_to_date_is_left_alone(models, tmp_path):
    text = diamond(models)
    run(text, tmp_path)
    before = {
        folder: (folder / "model.safetensors").stat().st_mtime_ns
        for folder in (tmp_path / "out", tmp_path / "stages/top")
    }
    assert states(run(text, tmp_path)) == {"": "up to date"}
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in before} == before
    again = run(text, tmp_path, lazy=False, job=JobOptions(overwrite=True))
    assert states(again) == {"top": "written", "left": "on the way", "right": "on the way", "": "written"}


@pytest.mark.parametrize("name", ["linear", "union", "float32", "base", "weight", "mlp"])
def test_o1_names_of_other_things_are_names_of_merges_where_a_model_is_meant_alone(name, models, tmp_path):
    weight = [{"filter": "mlp", "value": 0.25}, {"value": 0.75}]
    last = linear(models, name, "c", dtype="float32", parameters={"weight": weight})
    run(piped(linear(models, "a", "b", name=name), last), tmp_path)
    plain = last["models"][0]
    run_pipeline(
        piped(linear(models, "a", "b", name="first"), {**last, "models": [{"model": "first"}, last["models"][1]]}),
        options=MultiOptions(tmp_path / "other"),
    )
    assert plain["model"] == name
    ours, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "other"))
    assert all((ours[tensor] == other[tensor]).all() for tensor in other)


def test_o1_a_trailing_border_is_no_document(models, tmp_path):
    text = piped(linear(models, "a", name="one"), linear(models, "one"))
    for written in (text + "---\n", "---\n" + text, "# a comment\n---\n" + text + "\n---\n# the end\n...\n"):
        assert list(read_pipeline(written).stages) == ["one", ""]


def test_an_empty_document_in_between_is_an_error_with_its_line(models):
    text = piped(linear(models, "a", name="one")) + "---\n# nothing\n---\n" + piped(linear(models, "one"))
    [problem] = problems(text)
    assert "the document is empty" in problem
    assert "p.yml:5" in problem
    [problem] = problems("")
    assert "the document is empty" in problem


def test_mistakes_of_all_documents_are_told_at_once_with_their_lines(models):
    text = piped(
        {"name": "one", "merge_method": "linaer", "models": [{"model": "x"}]},
        {"name": "a/b", "merge_method": "linear", "models": [{"modle": "one"}]},
        linear(models, "oen"),
    )
    found = problems(text)
    assert [line for problem in found for line in (2, 6, 9) if f"p.yml:{line})" in problem] == [2, 6, 9]
    assert "`linaer` is not a merge method" in found[0]
    assert "`a/b` cannot be the name of a merge" in found[1]
    [problem] = problems(piped(linear(models, "a", name="first"), linear(models, "frist")))
    assert "there is no merge and no folder called `frist`" in problem
    assert "try `first`" in problem


def test_a_merge_has_no_revision_and_is_no_adapter(models):
    text = piped(linear(models, "a", name="one"), linear(models, "one@main", "a+one"))
    found = problems(text)
    assert "`one` is a merge, which has no revisions" in found[0]
    assert "at models[0].model (p.yml:8)" in found[0]
    assert "`one` is a merge, and stands for a model, not for an adapter" in found[1]


def test_a_name_comes_before_a_folder(models, tmp_path):
    write_model(tmp_path / "one", 8)
    run(piped(linear(models, "a", name="one"), linear(models, "one")), tmp_path)
    ours, a = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models / "a"))
    assert all((ours[name] == a[name]).all() for name in a)
    run(
        piped(linear(models, "a", name="one"), linear(models, str(tmp_path / "one"))),
        tmp_path,
        job=JobOptions(overwrite=True),
    )
    assert not (load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"] == a["lm_head.weight"]).all()


def test_a_mistake_that_only_planning_finds_stops_before_the_first_merge(models, tmp_path):
    late = linear(models, "one", "b", parameters={"weight": "much"})
    with pytest.raises(RecipeError, match=r"parameters\.weight \(p\.yml:8\)"):
        run(piped(linear(models, "a", "c", name="one"), late), tmp_path, keep=True)
    with pytest.raises(RecipeError, match=r"models\[1\]\.model \(p\.yml:10\)"):
        run(piped(linear(models, "a", "c", name="one"), linear(models, "one", "/not/there")), tmp_path, keep=True)
    assert names(tmp_path) == []


def test_documents_may_come_in_any_order_and_refer_from_everywhere(models, tmp_path):
    text = f"""
merge_method: task_arithmetic
slices:
- sources:
  - {{model: part, layer_range: [0, 2]}}
  - {{model: origin, layer_range: [0, 2], parameters: {{weight: 0.5}}}}
  base_model: part
base_model: part
tokenizer_source: origin
---
name: part
merge_method: linear
models: [{{model: {models}/a}}, {{model: {models}/b}}]
---
name: origin
merge_method: passthrough
models: [{{model: {models}/c}}]
"""
    pipeline = read_pipeline(text)
    assert [*pipeline.stages] == ["part", "origin", ""]
    paths = [path for path, _ in pipeline.stages[""].mentions]
    assert sorted(paths) == [
        "base_model",
        "slices[0].base_model",
        "slices[0].sources[0].model",
        "slices[0].sources[1].model",
        "tokenizer_source",
    ]


def test_an_edit_of_a_recipe_makes_it_and_what_needs_it_anew(models, tmp_path):
    run(diamond(models), tmp_path)
    edited = diamond(models).replace("name: right\n", "name: right\ndtype: bfloat16\n")
    with pytest.raises(OutputError, match="not empty"):
        run(edited, tmp_path)
    done = run(edited, tmp_path, job=JobOptions(overwrite=True))
    assert states(done) == {"top": "up to date", "left": "on the way", "right": "on the way", "": "written"}
    seeded = run(edited, tmp_path, job=JobOptions(plan=PlanOptions(seed=1), overwrite=True))
    assert states(seeded)["top"] == "written"


def test_a_changed_model_makes_everything_anew_that_is_made_of_it(models, tmp_path):
    own = write_model(tmp_path / "own", 11)
    text = piped(
        linear(models, "a", "b", name="one"), linear(models, str(own), name="two"), linear(models, "one", "two")
    )
    run(text, tmp_path, keep=True)
    assert set(states(run(text, tmp_path, keep=True)).values()) == {"up to date"}
    tensors = own / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    done = run(text, tmp_path, keep=True, job=JobOptions(overwrite=True))
    assert states(done) == {"one": "up to date", "two": "written", "": "written"}
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert states(run(text, tmp_path, keep=True, job=JobOptions(overwrite=True)))["two"] == "written"


def test_a_stage_that_lost_a_file_is_made_again(models, tmp_path):
    text = piped(linear(models, "a", "b", name="one"))
    options = MultiOptions(intermediate=tmp_path)
    run_pipeline(text, options=options)
    (tmp_path / "one" / "model.safetensors").unlink()
    assert states(run_pipeline(text, options=options)) == {"one": "written"}
    assert (tmp_path / "one" / "model.safetensors").exists()


def test_a_folder_that_a_pipeline_did_not_make_is_not_replaced(models, tmp_path):
    write_model(tmp_path / "stages" / "one", 5)
    with pytest.raises(OutputError, match="not empty"):
        run(piped(linear(models, "a", name="one"), linear(models, "one")), tmp_path, keep=True)


def test_only_what_is_asked_for_is_made(models, tmp_path):
    done = run_pipeline(diamond(models), options=MultiOptions(tmp_path / "out", tmp_path / "stages", only=("left",)))
    assert states(done) == {"top": "on the way", "left": "written"}
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "stages").exists()
    with pytest.raises(OutputError, match="there is no merge called `lfet`"):
        run(diamond(models), tmp_path, only=("lfet",))


def test_every_end_is_made_and_a_document_may_say_where(models, tmp_path):
    own = tmp_path / "elsewhere"
    text = piped(
        linear(models, "a", "b", name="one", out_path=str(own)),
        linear(models, "one", "c", name="end"),
        linear(models, "one", "a"),
    )
    done = run(text, tmp_path)
    assert states(done) == {"one": "written", "end": "written", "": "written"}
    assert all(
        (folder / "model.safetensors").exists() for folder in (own, tmp_path / "stages" / "end", tmp_path / "out")
    )
    with pytest.raises(OutputError, match="`one` and `two` have one folder"):
        run(
            piped(linear(models, "a", name="one", out_path="x"), linear(models, "a", name="two", out_path="./x")),
            tmp_path,
        )


def test_what_was_written_for_others_alone_can_be_removed(models, tmp_path):
    done = run(diamond(models), tmp_path, keep=False)
    assert [each.step.stage.key for each in done if each.removed] == ["top"]
    assert names(tmp_path) == ["out"]


def test_a_merge_of_a_pipeline_says_how_it_is_made_again(models, tmp_path):
    run(diamond(models), tmp_path)
    for folder in (tmp_path / "out", tmp_path / "stages" / "top"):
        assert verify_folder(folder).ok
        with pytest.raises(VerificationError, match=r"merge of a pipeline(.|\n)*mergekit multi mergekit_config.yml"):
            reproduce(folder)
        again = run_pipeline(
            (folder / "mergekit_config.yml").read_text(),
            options=MultiOptions(tmp_path / f"{folder.name}-again", only=("top",) if folder.name == "top" else ()),
        )
        written = again[-1].step.folder / "model.safetensors"
        assert written.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_what_the_pipeline_itself_gives_a_folder_is_not_removed(models, tmp_path):
    own = tmp_path / "own"
    text = diamond(models).replace("name: top\n", f"name: top\nout_path: {own}\n")
    assert str(own) in text
    done = run(text, tmp_path, keep=False, only=("left", "right"))
    assert [each.removed for each in done] == [False] * 3
    assert (own / "model.safetensors").is_file()


def test_a_stage_with_an_adapter_on_top_is_written(models, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]})
    )
    import torch
    from safetensors.torch import save_file

    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    save_file(
        {f"{stem}_A.weight": torch.ones(2, 24), f"{stem}_B.weight": torch.ones(24, 2)},
        adapter / "adapter_model.safetensors",
    )
    last = {"merge_method": "linear", "models": [{"model": f"one+{adapter}"}, {"model": str(models / "c")}]}
    done = run(piped(linear(models, "a", "b", name="one"), last), tmp_path)
    assert states(done) == {"one": "written", "": "written"}
    [first, _] = done
    assert first.step.reason == "`model.layers.0.self_attn.q_proj.weight` is changed before it is merged"


def test_the_output_keeps_the_documents_that_lead_to_it(models, tmp_path):
    text = "# how it was made\n" + diamond(models)
    run(text, tmp_path)
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text()
    assert list(yaml.safe_load_all(kept)) == list(yaml.safe_load_all(text))
    assert kept.startswith("# how it was made\n")
    again = run_pipeline(kept, options=MultiOptions(tmp_path / "again"))
    assert states(again)[""] == "written"
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    assert yaml.safe_load((tmp_path / "stages" / "top" / "mergekit_config.yml").read_text())["name"] == "top"


def test_the_licence_of_the_models_is_that_of_what_is_made_of_them(tmp_path):
    for seed, name in enumerate("xy"):
        folder = write_model(tmp_path / name, seed)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    text = piped(linear(tmp_path, "x", "y", name="one"), linear(tmp_path, "one", "x"))
    run(text, tmp_path)
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()
    assert "* `one`" in (tmp_path / "out" / "README.md").read_text()
