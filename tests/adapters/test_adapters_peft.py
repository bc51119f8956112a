"""A model and an adapter give what peft gives when it merges the one into the other."""

import copy
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_checkpoints import fine_tuned, merge, octets, read_model, recipe, write_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

QKV = ["q_proj", "k_proj", "v_proj"]
LINEAR = [*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(tied=False, bias=False, dtype=torch.float32):
    config = transformers.LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    return _randomised(transformers.LlamaForCausalLM(config), 1, dtype)


def gpt2(dtype=torch.float32):
    config = transformers.GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    return _randomised(transformers.GPT2LMHeadModel(config), 1, dtype)


def _randomised(model, seed, dtype=torch.float32):
    """The model with noise in every parameter, those that begin at 0 too."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float32).to(parameter.dtype)
    return model.to(dtype)


@pytest.fixture(autouse=True, scope="module")
def modest_transformers():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture
def trained(tmp_path):
    """Write a base and an adapter for it; return their reference and the tensors that peft makes of both."""

    def train(base, dtype=None, adapter_dtype=None, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.save_pretrained(tmp_path / "base")
            model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
            random = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in trainable:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=random)
            if adapter_dtype:
                model.to(adapter_dtype)
            model.save_pretrained(tmp_path / "adapter")
            loaded = type(base).from_pretrained(tmp_path / "base", dtype=dtype or torch.float32)
            whole = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
            expected = whole.merge_and_unload().state_dict()
        return f"{tmp_path}/base+{tmp_path}/adapter", expected

    return train


def assert_merged(reference, expected, out, changed, method="passthrough", **settings):
    """The merge of the reference alone is the expected model, and these modules are not what they were."""
    watch = merge(recipe(method, [reference], **settings), out)
    found, base = read_model(out), read_model(out.parent / "base")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-6, atol=1e-6)
    differing = {name for name in found if name not in base or octets(found[name]) != octets(base[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in differing} == set(changed)
    assert watch.plan.leftovers == ()
    assert sum(watch.bytes) == watch.plan.read_bytes + watch.plan.write_bytes
    return found


FEATURES = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "odd rank": {"r": 7, "lora_alpha": 3, "target_modules": LINEAR},
    "rank-stabilised": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": LINEAR},
    "weight-decomposed": {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": LINEAR},
    "weight-decomposed and rank-stabilised": {"r": 3, "use_dora": True, "use_rslora": True, "target_modules": QKV},
    "ranks of their own": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"layers.0.self_attn.q_proj": 9, "^model.layers.1.mlp.down_proj": 2, "k_proj": 6},
        "alpha_pattern": {r"layers\.\d+\.mlp\..*": 1, "k_proj": 32},
    },
    "ranks of their own, rank-stabilised": {
        "use_rslora": True,
        "target_modules": QKV,
        "rank_pattern": {r"[qk]_proj": 2},
        "alpha_pattern": {".*": 3},
    },
    "embedding": {"r": 5, "target_modules": ["embed_tokens", "v_proj"]},
    "embedding, weight-decomposed": {"r": 5, "use_dora": True, "target_modules": ["embed_tokens", "v_proj"]},
    "head": {"r": 5, "target_modules": ["lm_head", "v_proj"]},
    "whole modules": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "model.norm"]},
    "rows of tokens": {"target_modules": ["v_proj"], "trainable_token_indices": [0, 66, 5]},
    "rows of tokens in two": {
        "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]},
    },
    "one layer": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
}

CHANGED = {
    "plain": ["q_proj", "down_proj"],
    "odd rank": LINEAR,
    "rank-stabilised": LINEAR,
    "weight-decomposed": LINEAR,
    "weight-decomposed and rank-stabilised": QKV,
    "ranks of their own": LINEAR,
    "ranks of their own, rank-stabilised": QKV,
    "embedding": ["embed_tokens", "v_proj"],
    "embedding, weight-decomposed": ["embed_tokens", "v_proj"],
    "head": ["lm_head", "v_proj"],
    "whole modules": ["embed_tokens", "lm_head", "norm", "v_proj"],
    "rows of tokens": ["embed_tokens", "v_proj"],
    "rows of tokens in two": ["embed_tokens", "lm_head", "v_proj"],
    "one layer": ["v_proj"],
}


@pytest.mark.parametrize("feature", FEATURES)
def test_adapters_of_linear_layers(feature, trained, tmp_path):
    reference, expected = trained(llama(), **FEATURES[feature])
    assert_merged(reference, expected, tmp_path / "out", CHANGED[feature])


def test_a_pickled_adapter(trained, tmp_path):
    """With a factor whose entries do not lie in order."""
    reference, expected = trained(llama(), r=4, target_modules=["q_proj"], modules_to_save=["model.norm"])
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    torch.save(
        {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()},
        tmp_path / "adapter" / "adapter_model.bin",
    )
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert_merged(reference, expected, tmp_path / "out", ["q_proj", "norm"])


BIASED = {
    "bias of the product": ({"lora_bias": True, "target_modules": QKV}, QKV),
    "biases of targets": ({"bias": "lora_only", "target_modules": ["q_proj"]}, ["q_proj"]),
    "all biases": ({"bias": "all", "target_modules": ["q_proj"]}, [*QKV, "o_proj"]),
}


@pytest.mark.parametrize("feature", BIASED)
def test_biases(feature, trained, tmp_path):
    settings, changed = BIASED[feature]
    reference, expected = trained(llama(bias=True), **settings)
    assert_merged(reference, expected, tmp_path / "out", changed)


CONV1D = {
    "plain": {"target_modules": ["c_attn"]},
    "square ones": {"target_modules": ["attn.c_proj"]},
    "all": {"r": 5, "use_rslora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    "weight-decomposed": {"use_dora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    "told wrong about the order of dimensions": {"fan_in_fan_out": False, "target_modules": ["c_attn", "attn.c_proj"]},
    "embeddings": {"target_modules": ["wpe", "c_fc"]},
    "bias of the product": {"lora_bias": True, "target_modules": ["c_attn"]},
}


@pytest.mark.parametrize("feature", CONV1D)
def test_adapters_of_matrices_that_are_stored_transposed(feature, trained, tmp_path):
    settings = CONV1D[feature]
    reference, expected = trained(gpt2(), **settings)
    assert_merged(
        reference, expected, tmp_path / "out", {name.rpartition(".")[2] for name in settings["target_modules"]}
    )


def test_names_meet_without_the_prefix_of_the_larger_model(trained, tmp_path):
    reference, expected = trained(gpt2(), target_modules=["c_attn"])
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in read_model(tmp_path / "base").items()}
    config = gpt2().config.to_dict()
    write_model(tmp_path / "base", tensors, config)
    merge(recipe("passthrough", [reference]), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[f"transformer.{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]
)
def test_a_head_of_its_own_for_a_model_that_shares_its_embedding(settings, trained, tmp_path):
    reference, _ = trained(llama(tied=True), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        whole = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected = whole(tokens).logits  # unmerged: merging would change the embedding together with the head
    merge(recipe("passthrough", [reference]), tmp_path / "out")
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.config.tie_word_embeddings is False
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert octets(read_model(tmp_path / "out")["model.embed_tokens.weight"]) == octets(
        read_model(tmp_path / "base")["model.embed_tokens.weight"]
    )


def test_an_embedding_that_is_the_head_too(trained, tmp_path):
    reference, expected = trained(llama(tied=True), target_modules=["embed_tokens"])
    found = assert_merged(reference, expected, tmp_path / "out", ["embed_tokens"])
    assert "lm_head.weight" not in found


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dora", [False, True])
def test_numbers_are_rounded_once(dora, dtype, adapter_dtype, trained, tmp_path):
    """The base is widened, the sum is taken in float32, and its result has the dtype of the base."""
    settings = {"r": 4, "use_dora": dora, "target_modules": LINEAR, "modules_to_save": ["model.norm"]}
    reference, exact = trained(llama(dtype=dtype), adapter_dtype=adapter_dtype, **settings)
    merge(recipe("passthrough", [reference]), tmp_path / "out")
    found = read_model(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    for name, tensor in found.items():
        step = torch.finfo(dtype).eps * exact[name].abs() / 2  # half the distance of neighbours, at most
        assert ((tensor.float() - exact[name]).abs() <= 1.001 * step + 1e-7).all(), name


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "slerp"])
def test_adapted_models_are_merged_like_any(method, trained, tmp_path):
    reference, expected = trained(llama(), r=4, use_rslora=True, target_modules=LINEAR)
    base = read_model(tmp_path / "base")
    config = llama().config.to_dict()
    write_model(tmp_path / "other", fine_tuned(base, 3), config)
    write_model(tmp_path / "whole", {name: expected[name].clone() for name in base}, config)
    common = {"base_model": None if method == "linear" else str(tmp_path / "base")}
    common["parameters"] = {"t": 0.3} if method == "slerp" else {"weight": 0.6, "density": 0.5}
    others = [tmp_path / "other"] if method != "slerp" else []
    merge(recipe(method, [reference, *others], **common), tmp_path / "found")
    merge(recipe(method, [tmp_path / "whole", *others], **common), tmp_path / "expected")
    found, wanted = read_model(tmp_path / "found"), read_model(tmp_path / "expected")
    for name, tensor in wanted.items():
        close = (found[name] - tensor).abs() <= 2e-6
        assert close.float().mean() > (0.99 if method == "ties" else 0.9999), name  # a cut may fall between two equals


def test_one_base_with_two_adapters(trained, tmp_path):
    reference, expected = trained(llama(), r=4, target_modules=["v_proj"])
    text = recipe("linear", [reference, tmp_path / "base"], parameters={"weight": 0.5})
    watch = merge(text, tmp_path / "out")
    base, found = read_model(tmp_path / "base"), read_model(tmp_path / "out")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (base[name] + expected[name]) / 2, rtol=1e-6, atol=1e-6)
    (adapted, plain) = watch.plan.models
    assert (adapted.adapter is not None, plain.adapter) == (True, None)
