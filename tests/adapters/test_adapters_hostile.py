"""Adapters that are not what they claim, or not what this version applies: one error that says so, and no output."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import merge, octets, read_model, recipe, write_llama

from mergekit.adapters.config import read_lora_config
from mergekit.errors import NonFiniteError, RecipeError

MODULE = "model.layers.0.self_attn.q_proj"
NAME = f"base_model.model.{MODULE}"
WIDTH = 32


def config(**changes):
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **changes}
    return {key: value for key, value in settings.items() if value is not ...}


def factors(a=(2, WIDTH), b=(WIDTH, 2), dtype=torch.float32):
    return {
        f"{NAME}.lora_A.weight": torch.full(a, 0.01).to(dtype),
        f"{NAME}.lora_B.weight": torch.full(b, 0.01).to(dtype),
    }


@pytest.fixture
def base(tmp_path):
    write_llama(tmp_path / "base", layers=2)
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    """Write an adapter of these settings and tensors; its folder."""

    def write(tensors=None, **settings):
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config(**settings)))
        save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
        return folder

    return write


def refused(base, folder):
    """The one error about this adapter."""
    out = base.parent / "out"
    with pytest.raises(RecipeError) as caught:
        merge(recipe("passthrough", [f"{base}+{folder}"]), out)
    (problem,) = caught.value.problems
    assert str(problem.place) == "models[0].model (merge.yml:3)"
    assert not out.exists()
    return str(problem)


def test_the_adapter_that_the_others_are_variations_of(base, adapter):
    merge(recipe("passthrough", [f"{base}+{adapter()}"]), base.parent / "out")
    found, before = read_model(base.parent / "out"), read_model(base)
    expected = before[f"{MODULE}.weight"] + 4 / 2 * 2 * 1e-4
    torch.testing.assert_close(found.pop(f"{MODULE}.weight"), expected, rtol=1e-6, atol=1e-6)
    assert all(octets(tensor) == octets(before[name]) for name, tensor in found.items())


# Folders


def test_no_folder(base, tmp_path):
    assert "there is no such folder" in refused(base, tmp_path / "nobody")


def test_a_file(base):
    assert "the adapter is a file, not a folder" in refused(base, base / "config.json")


def test_a_model_in_the_place_of_an_adapter(base):
    message = refused(base, base)
    assert "no adapter_config.json" in message
    assert "as a model of its own" in message


def test_an_adapter_in_the_place_of_a_model(base, adapter):
    with pytest.raises(RecipeError, match="BASE\\+ADAPTER as the model"):
        merge(recipe("passthrough", [adapter()]), base.parent / "out")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"r": ' + "[" * 100_000, b"\xff\xfe", "null"])
def test_a_config_that_is_none(text, base, adapter):
    folder = adapter()
    (folder / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "adapter_config.json" in refused(base, folder)


@pytest.mark.parametrize("size", [0, 7, 100, -4])
def test_weights_that_are_cut_short(size, base, adapter):
    folder = adapter()
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "adapter_model.safetensors" in refused(base, folder)


def test_no_weights(base, adapter):
    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(base, folder)


def test_weights_without_tensors(base, adapter):
    assert "the adapter has no tensors" in refused(base, adapter({}))


def test_a_link_out_of_the_folder(base, adapter, tmp_path):
    folder = adapter()
    (folder / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    (folder / "adapter_config.json").symlink_to(tmp_path / "elsewhere.json")
    assert "outside of the folder" in refused(base, folder)


# Settings


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*b",
        "(a|a)+b",
        "(a?){40}b",
        "a?" * 40 + "a" * 40,
        "(a|a)" * 40 + "b",
        ".*.*.*.*.*b",
        "((a|b)*c)*",
        r"(a)\1+",
        "(?=a+)+",
        "(?P<a>a)+",
        "a" * 2000,
    ],
)
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_never_end_are_refused(key, pattern, base, adapter):
    """Over a name of a hundred letters Python's `re` would try out more than there is time for."""
    assert "matched at once" in refused(base, adapter(**{key: {pattern: 2}}))


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "^model.layers.0.self_attn.q_proj",
        r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj",
        r".*\.layers\.(0|1|2|3|4|5|6|7|8|9|10|11|12|13|14|15)\..*(q_proj|k_proj|v_proj|o_proj)",
        r"layers\.([0-9]|1[0-5])\.mlp\.(?:gate|up|down)_proj",
        "[)*+(]",
        r"\(a\+\)\+",
    ],
)
def test_patterns_as_people_write_them_are_read(pattern, tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": 8, "rank_pattern": {pattern: 4}}))
    config = read_lora_config(file)
    for name in ("model.layers.0.self_attn.q_proj", "a" * 3000, "(a+)+", "0" * 300):
        assert config.rank_of(name) in (4, 8)
    assert config.rank_of("x") == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 2.5),
        ("r", True),
        ("r", "2"),
        ("r", 10**30),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", "4"),
        ("lora_alpha", 10**400),
        ("lora_alpha", None),
        ("rank_pattern", [1]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj(": 2}),
        ("rank_pattern", {"q_proj{99999999999999999999}": 2}),
        ("alpha_pattern", {"q_proj": float("nan")}),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("fan_in_fan_out", []),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"embed_tokens": 3}),
        ("peft_type", ...),
        ("peft_type", 7),
    ],
)
def test_settings_that_cannot_be(key, value, base, adapter):
    message = refused(base, adapter(**{key: value}))
    assert f"`{key}` of the adapter is" in message
    assert "adapter_config.json" in message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("peft_type", "IA3", "IA3"),
        ("peft_type", "LOHA", "LOHA"),
        ("peft_type", "ADALORA", "ADALORA"),
        ("peft_type", "PROMPT_TUNING", "PROMPT_TUNING"),
        ("layer_replication", [[0, 2], [1, 2]], "`layer_replication`"),
        ("megatron_config", {"x": 1}, "`megatron_config`"),
        ("alora_invocation_tokens", [1], "`alora_invocation_tokens`"),
        ("use_qalora", True, "`use_qalora`"),
        ("init_lora_weights", "pissa", "pissa"),
        ("init_lora_weights", "pissa_niter_16", "pissa_niter_16"),
        ("init_lora_weights", "olora", "olora"),
        ("init_lora_weights", "loftq", "loftq"),
    ],
)
def test_what_is_not_applied_is_refused_by_name(key, value, reason, base, adapter):
    assert reason in refused(base, adapter(**{key: value}))


@pytest.mark.parametrize("initial", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_leave_the_base_alone_are_fine(initial, base, adapter):
    folder = adapter(init_lora_weights=initial)
    merge(recipe("passthrough", [f"{base}+{folder}"]), base.parent / "out")
    assert (base.parent / "out").is_dir()


# Tensors


def test_a_tensor_that_the_base_does_not_have(base, adapter):
    tensors = {name.replace("q_proj", "q_prj"): tensor for name, tensor in factors().items()}
    message = refused(base, adapter(tensors))
    assert "would change `model.layers.0.self_attn.q_prj.weight`, which the base does not have" in message
    assert "`model.layers.0.self_attn.q_proj.weight`" in message
    assert "the model that the adapter was trained on" in message


def test_one_stray_tensor_among_many(base, adapter):
    tensors = {**factors(), "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2, WIDTH)}
    assert "`model.layers.7.self_attn.q_proj.weight`" in refused(base, adapter(tensors))


def test_a_head_for_a_base_that_has_one_under_another_name(base, adapter):
    tensors = {"base_model.model.score.weight": torch.ones(64, WIDTH)}
    assert "`score.weight`, which the base does not have" in refused(base, adapter(tensors))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (factors(a=(2, WIDTH - 1)), "does not have the shape"),
        (factors(b=(WIDTH + 1, 2)), "does not have the shape"),
        (factors(b=(WIDTH, 3)), "does not have the shape"),
        (factors(a=(2, 4, 8)), "does not have the shape"),
        (factors(b=(64,)), "does not have the shape"),
        (factors(a=()), "has rank 0, the adapter's config says 2"),
        (factors(a=(0, WIDTH), b=(WIDTH, 0)), "has rank 0, the adapter's config says 2"),
        (factors(a=(3, WIDTH), b=(WIDTH, 3)), "has rank 3, the adapter's config says 2"),
        (factors(dtype=torch.int8), "is int8"),
        (factors(dtype=torch.float8_e4m3fn), "is float8_e4m3fn"),
        ({f"{NAME}.lora_A.weight": torch.ones(2, WIDTH)}, "has no `lora_B`"),
        ({f"{NAME}.lora_B.weight": torch.ones(WIDTH, 2)}, "has no `lora_A`"),
        ({**factors(), f"{NAME}.lora_magnitude_vector": torch.ones(WIDTH)}, "has a `lora_magnitude_vector`"),
        ({f"{NAME}.lora_E": torch.ones(2, 1)}, "no tensor of a LoRA adapter that this version knows"),
        ({f"{NAME}.lora_A.default.weight": torch.ones(2, WIDTH)}, "no tensor of a LoRA adapter"),
        ({"base_model.model.lm_head.weight": torch.ones(65, WIDTH)}, "whose vocabulary was extended"),
        ({"base_model.model.lm_head.weight": torch.ones(WIDTH)}, "what it replaces is [64, 32]"),
    ],
)
def test_tensors_that_do_not_fit(tensors, message, base, adapter):
    assert message in refused(base, adapter(tensors))


@pytest.mark.parametrize(
    ("magnitudes", "message"),
    [(None, "has no `lora_magnitude_vector`"), (torch.ones(WIDTH - 1), "is [31]")],
)
def test_norms_that_do_not_fit(magnitudes, message, base, adapter):
    extra = {} if magnitudes is None else {f"{NAME}.lora_magnitude_vector": magnitudes}
    assert message in refused(base, adapter({**factors(), **extra}, use_dora=True))


ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("indices", "shape", "message"),
    [
        ([0, 64], (2, WIDTH), "token 64 of `trainable_token_indices` is none of the base's 64"),
        ([0, 1], (3, WIDTH), "for 2 rows"),
        ([0, 1], (2, WIDTH + 1), "for 2 rows"),
        (None, (2, WIDTH), "`trainable_token_indices` does not name"),
        ({"lm_head": [0, 1]}, (2, WIDTH), "`trainable_token_indices` does not name"),
    ],
)
def test_rows_that_do_not_fit(indices, shape, message, base, adapter):
    assert message in refused(base, adapter({ROWS: torch.ones(shape)}, trainable_token_indices=indices))


def test_rows_and_a_product_for_one_tensor(base, adapter):
    stem = "base_model.model.model.embed_tokens"
    both = {ROWS: torch.ones(1, WIDTH), f"{stem}.lora_embedding_A": torch.ones(2, 64)}
    assert "has both new rows and a product" in refused(base, adapter(both, trainable_token_indices=[3]))


def test_biases_that_peft_ignores_are_told_and_not_added(base, adapter, tmp_path):
    folder = adapter({**factors(), f"{NAME}.lora_B.bias": torch.ones(WIDTH)})
    watch = merge(recipe("passthrough", [f"{base}+{folder}"]), tmp_path / "out")
    assert any("1 biases are not added" in warning for warning in watch.warnings)
    assert f"{MODULE}.bias" not in read_model(tmp_path / "out")


def test_biases_for_a_base_that_has_none(base, adapter):
    folder = adapter({**factors(), f"{NAME}.lora_B.bias": torch.ones(WIDTH)}, lora_bias=True)
    assert f"would change `{MODULE}.bias`, which the base does not have" in refused(base, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_factors_that_are_not_finite_are_found_in_the_output(value, base, adapter, tmp_path):
    folder = adapter({name: tensor * value for name, tensor in factors().items()}, lora_alpha=1e20)
    with pytest.raises(NonFiniteError, match=f"`{MODULE}.weight`") as caught:
        merge(recipe("passthrough", [f"{base}+{folder}"]), tmp_path / "out")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_mistakes_of_base_and_adapter_are_told_together(tmp_path):
    with pytest.raises(RecipeError) as caught:
        merge(recipe("passthrough", [f"{tmp_path}/nobody+{tmp_path}/nothing"]), tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert "nobody" in str(caught.value)
    assert "nothing" in str(caught.value)


def test_a_revision_of_a_local_adapter_is_told(base, adapter, tmp_path):
    watch = merge(recipe("passthrough", [f"{base}+{adapter()}@v2"]), tmp_path / "out")
    assert any("v2 has no effect" in warning for warning in watch.warnings)


# What is written about it


def test_the_report_and_the_card_name_the_adapter(base, adapter, tmp_path):
    folder = adapter()
    report = merge(recipe("linear", [f"{base}+{folder}", base], parameters={"weight": 1}), tmp_path / "out").report
    adapted, plain = report["parents"]
    assert adapted["model"] == f"{base}+{folder}"
    assert adapted["adapter"]["folder"] == str(folder)
    (file,) = adapted["adapter"]["files"]
    assert (file["name"], file["bytes"]) == (
        "adapter_model.safetensors",
        (folder / "adapter_model.safetensors").stat().st_size,
    )
    assert len(file["header_sha256"]) == len(adapted["adapter"]["config_sha256"]) == 64
    assert "merged" in adapted["role"]
    assert "adapter" not in plain
    assert f"* `{base}` + `{folder}`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("layers", [1, 3])
def test_stripes_and_threads_do_not_show(layers, base, tmp_path, monkeypatch, adapter):
    from mergekit.plan import memory

    write_llama(tmp_path / "large", layers=layers, width=160, inner=230, rows=300, dtype=torch.bfloat16)
    shapes = {"self_attn.q_proj": (160, 160), "mlp.down_proj": (160, 230), "mlp.up_proj": (230, 160)}
    tensors = {}
    for layer in range(layers):
        for module, (out, width) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(6, width)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 6)
            tensors[f"{stem}.lora_magnitude_vector"] = torch.rand(out)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.randn(6, 300)
    tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = torch.randn(160, 6)
    tensors["base_model.model.model.embed_tokens.lora_magnitude_vector"] = torch.rand(160)
    folder = adapter(tensors, r=6, use_dora=True)
    found = set()
    for number, (stripe, workers) in enumerate([(4096, 1), (4096, 3), (3 * 4096, 2), (1 << 20, 1), (1 << 20, 4)]):
        monkeypatch.setattr(memory, "_STRIPE", stripe)
        text = recipe(
            "ties", [f"{tmp_path}/large+{folder}"], base_model=str(tmp_path / "large"), parameters={"density": 0.5}
        )
        watch = merge(text, tmp_path / str(number), workers=workers)
        assert sum(watch.bytes) == watch.plan.read_bytes + watch.plan.write_bytes
        found.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(found) == 1


def test_what_adapters_keep_counts_as_memory(base, adapter, tmp_path):
    folder = adapter()
    plain = merge(recipe("passthrough", [base]), tmp_path / "plain", workers=2).plan
    adapted = merge(recipe("passthrough", [f"{base}+{folder}"]), tmp_path / "adapted", workers=2).plan
    kept = max(task.kept_bytes for task in adapted.tasks)
    assert kept >= 4 * (2 * WIDTH + WIDTH * 2)
    assert adapted.memory.peak == plain.memory.peak + 2 * kept
