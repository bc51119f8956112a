"""Extraction from the trained models of the examples, and from whatever recipes can name."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_tuned import extract, llama, save, tune

from mergekit.errors import BudgetError, CheckpointError, NonFiniteError, OutputError, VerificationError
from mergekit.lora import Goal, Running, Wish, extract_lora, plan_extraction
from mergekit.lora.checking import check_adapter
from mergekit.merging import merge_recipe
from mergekit.recipe import ModelRef
from mergekit.report.difference import compare_models, reference

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture
def experts(tmp_path):
    for name, model in (("base", "base"), ("tuned", "de")):
        shutil.copytree(MODELS / model, tmp_path / name)
    return tmp_path


def matrices(folder):
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_an_expert_at_rank_8_holds_the_energy_that_is_reported(experts):
    report = extract(experts, rank=8)
    base, tuned = matrices(experts / "base"), matrices(experts / "tuned")
    norm = missed = 0.0
    for module in report["modules"]:
        name = module["module"] + ".weight"
        values = torch.linalg.svdvals(tuned[name] - base[name]) if tuned[name].dim() == 2 else torch.zeros(1)
        if module["held"] == "products":
            assert module["rank"] == 8
            assert module["energy"] == pytest.approx(float((values[:8] ** 2).sum() / (values**2).sum()), abs=1e-5)
            missed += float((values[8:] ** 2).sum())
        norm += float(((tuned[name] - base[name]) ** 2).sum())
    assert report["totals"]["energy"] == pytest.approx(1 - missed / norm, abs=1e-5)
    assert 0.7 < report["totals"]["energy"] < 0.8
    assert report["check"]["relative_error"] == pytest.approx((missed / norm) ** 0.5, rel=1e-3)


def test_an_expert_at_full_rank_is_restored_to_bfloat16_rounding(experts):
    report = extract(experts, rank=10**6)
    assert report["totals"]["energy"] == 1
    assert report["check"]["relative_error"] < 1e-6
    assert report["check"]["same_entries"] > 0.9999
    text = f"merge_method: passthrough\nmodels: [{{model: {experts}/base+{experts}/adapter}}]\n"
    merge_recipe(text, experts / "restored")
    found, wanted = matrices(experts / "restored"), matrices(experts / "tuned")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_of_a_narrow_dtype(dtype, experts):
    report = extract(experts, rank=8, dtype=dtype)
    tensors = load_file(experts / "adapter" / "adapter_model.safetensors")
    factors = {tensor.dtype for name, tensor in tensors.items() if "lora_" in name}
    assert factors == {getattr(torch, dtype)}
    assert report["check"]["relative_error"] == pytest.approx(report["totals"]["relative_error"], rel=1e-2)


def test_the_rank_follows_the_energy(experts):
    report = extract(experts, energy=0.9)
    held = [module for module in report["modules"] if module["held"] == "products"]
    assert all(module["energy"] >= 0.9 - 1e-6 for module in held)
    assert len({module["rank"] for module in held}) > 3
    settings = json.loads((experts / "adapter" / "adapter_config.json").read_text())
    assert {settings["r"], *settings["rank_pattern"].values()} == {module["rank"] for module in held}


def test_threads_do_not_matter(experts):
    plan = plan_extraction(reference(str(experts / "base")), reference(str(experts / "tuned")), Wish(Goal(8)))
    for workers in (1, 3):
        extract_lora(plan, experts / f"adapter-{workers}", Running(workers=workers))
    one, three = ((experts / f"adapter-{n}" / "adapter_model.safetensors").read_bytes() for n in (1, 3))
    assert one == three


def test_progress_adds_up(experts):
    told = []
    plan = plan_extraction(reference(str(experts / "base")), reference(str(experts / "tuned")), Wish(Goal(2)))
    done = []
    running = Running(check=True, planned=lambda nbytes, *_: told.append(nbytes), advance=done.append)
    extract_lora(plan, experts / "adapter", running)
    assert sum(done) == told[0]


def test_modules_that_are_the_same_are_not_held(tmp_path):
    save(llama(), tmp_path / "base")
    save(tune(llama(), only="layers.1.mlp"), tmp_path / "tuned")
    report = extract(tmp_path)
    assert report["totals"]["changed"] == 3
    assert report["totals"]["modules"] == 21
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0] for name in tensors} == {
        f"base_model.model.model.layers.1.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")
    }


def test_a_fine_tune_that_is_an_adapter_itself(experts):
    """What is extracted from a base with an adapter is that adapter."""
    extract(experts, rank=3)
    plan = plan_extraction(
        reference(str(experts / "base")),
        ModelRef.parse(f"{experts}/base+{experts}/adapter"),
        Wish(Goal(8, epsilon=1e-4)),
    )
    report = extract_lora(plan, experts / "again", Running(check=True))
    held = {module["rank"] for module in report["modules"] if module["held"] == "products"}
    assert held == {3}
    first, again = (
        compare_models(str(experts / "base"), f"{experts}/base+{experts}/{n}") for n in ("adapter", "again")
    )
    for one, other in zip(first.tensors, again.tensors, strict=True):
        assert other.distance.relative == pytest.approx(one.distance.relative, rel=1e-4)


def test_shards_and_other_dtypes(tmp_path):
    base, tuned = llama(), tune(llama(), only="_proj")
    save(base.half(), tmp_path / "base")
    save(tuned, tmp_path / "tuned", max_shard_size="20KB")
    assert (tmp_path / "tuned" / "model.safetensors.index.json").exists()
    report = extract(tmp_path, rank=32)
    assert report["check"]["relative_error"] < 1e-3


def test_a_convolution(tmp_path):
    """Its factors have the kernel's dimensions; a depthwise one is held whole."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"conv1.weight": (8, 4, 3), "patch.conv.weight": (8, 3, 2, 2), "mixer.conv1d.weight": (8, 1, 4)}
    shapes |= {f"layers.{layer}.fc.weight": (8, 8) for layer in range(2)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for folder, scale in (("base", 0.0), ("tuned", 0.1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": "tiny", "num_hidden_layers": 2}))
        tensors = {name: tensor + scale * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
    report = extract(tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.conv1.lora_A.weight"].shape == (8, 4, 3)
    assert tensors["base_model.model.conv1.lora_B.weight"].shape == (8, 8, 1)
    assert tensors["base_model.model.patch.conv.lora_B.weight"].shape == (8, 8, 1, 1)
    assert tensors["base_model.model.mixer.conv1d.weight"].shape == (8, 1, 4)
    assert report["check"]["relative_error"] < 1e-6


def test_what_an_adapter_cannot_hold_is_said(tmp_path):
    save(llama(), tmp_path / "base")
    save(tune(llama(), only="_proj"), tmp_path / "tuned")
    file = tmp_path / "tuned" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(60, 32)
    save_file(tensors, file, {"format": "pt"})
    report = extract(tmp_path)
    assert {entry["reason"]: entry["tensors"] for entry in report["left_out"]} == {
        "only the fine-tune has them": ["model.layers.0.self_attn.q_norm.weight"],
        "they have other shapes in the fine-tune": ["model.layers.1.mlp.up_proj.weight"],
    }
    assert len(report["warnings"]) == 2


def broken(folder, entry):
    save(llama(), folder / "base")
    tuned = tune(llama(), only="_proj")
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight[3, 4] = entry
    save(tuned, folder / "tuned")


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_broken_numbers_are_found(entry, tmp_path):
    broken(tmp_path, entry)
    with pytest.raises(NonFiniteError, match=r"`model\.layers\.1\.mlp\.up_proj\.weight` holds NaN or infinity"):
        extract(tmp_path)
    assert not (tmp_path / "adapter").exists()
    report = extract(tmp_path, exclude=(re.compile(r"^model\.layers\.1\.mlp\.up_proj$"),))
    assert report["totals"]["changed"] == 13


def test_the_check_finds_an_adapter_that_is_something_else(tmp_path):
    save(llama(), tmp_path / "base")
    save(tune(llama(), only="_proj"), tmp_path / "tuned")
    plan = plan_extraction(reference(str(tmp_path / "base")), reference(str(tmp_path / "tuned")))
    extract_lora(plan, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"][0] += 0.01
    save_file(tensors, file, {"format": "pt"})
    from mergekit.lora.measuring import Finding

    claims = [Finding(unit, "products", norm=100.0) for unit in plan.units]
    with pytest.raises(VerificationError, match=r"`model\.layers\.0\.mlp\.up_proj\.weight` with the adapter is"):
        check_adapter(plan.pairs, claims, tmp_path / "adapter", lambda _: None)


def test_an_output_that_is_there_is_kept(tmp_path):
    save(llama(), tmp_path / "base")
    save(tune(llama(), only="_proj"), tmp_path / "tuned")
    extract(tmp_path)
    with pytest.raises(OutputError, match="not empty"):
        extract(tmp_path, rank=1)
    assert extract(tmp_path, rank=1, overwrite=True)["totals"]["rank"] == 1
    with pytest.raises(OutputError, match="replace one of the models"):
        extract(tmp_path, out="tuned", overwrite=True)


def test_memory_that_is_not_enough_is_refused(tmp_path):
    save(llama(), tmp_path / "base")
    save(tune(llama(), only="_proj"), tmp_path / "tuned")
    plan = plan_extraction(reference(str(tmp_path / "base")), reference(str(tmp_path / "tuned")))
    with pytest.raises(BudgetError, match="largest matrix does not fit into 100 MB"):
        extract_lora(plan, tmp_path / "adapter", Running(max_memory=100_000_000))


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError):
        plan_extraction(reference(str(tmp_path / "base")), reference(str(tmp_path / "tuned")))


def test_the_report_and_the_card(experts):
    report = extract(experts, rank=4)
    assert json.loads((experts / "adapter" / "merge_report.json").read_text()) == report
    card = (experts / "adapter" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\ntags:\n- mergekit\n- peft\n---\n\n# adapter\n")
    assert "| norm | 9 | whole | 100 % |" in card
    assert sorted(path.name for path in (experts / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "merge_report.json",
    ]
