"""What an inspection says, against what transformers says about the same model."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from mergekit.checkpoint import open_checkpoint
from mergekit.layout import Part
from mergekit.report.inspection import inspect_checkpoint
from mergekit.report.parts import PARTS, part_of

sys.path.append(str(Path(__file__).parents[1] / "merging"))

from tiny_families import FAMILIES, LAYERS, ROWS

_SMALL = FAMILIES["llama"][2]
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAVA = {
    "text_config": {"model_type": "llama", **_SMALL},
    "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **_VISION},
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2, "num_experts": 2, "moe_intermediate_size": 16}
MADE = {
    **{name: FAMILIES[name] for name in ("llama", "llama_tied", "gpt2", "neox", "gemma3", "mixtral", "bert", "t5")},
    "sparse": (*FAMILIES["qwen3_moe"][:2], {**FAMILIES["qwen3_moe"][2], "mlp_only_layers": [1]}),
    "hybrid": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**_SMALL, **_HYBRID}),
    "llava": ("LlavaForConditionalGeneration", "LlavaConfig", _LLAVA),
}
ONE_STACK = [name for name in MADE if name not in ("t5", "llava")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family's folder and the model in it, made once."""
    transformers.utils.logging.disable_progress_bar()
    known = {}

    def make(name):
        if name not in known:
            model_class, config_class, settings = MADE[name]
            model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            known[name] = folder, model
        return known[name]

    return make


def inspected(folder):
    return inspect_checkpoint(open_checkpoint(folder))


@pytest.mark.parametrize("name", MADE)
def test_totals_are_those_of_the_model(name, made):
    folder, model = made(name)
    found = inspected(folder)
    assert found.total.parameters == model.num_parameters()
    assert found.architectures == (type(model).__name__,)
    assert found.model_type == model.config.model_type
    assert [share.name for share in found.dtypes] == ["float32"]
    assert found.total.bytes == 4 * found.total.parameters
    for shares in (found.dtypes, found.parts, found.files, [module.share for module in found.modules]):
        assert sum(share.tensors for share in shares) == found.total.tensors == len(found.tensors)
        assert sum(share.parameters for share in shares) == found.total.parameters
        assert sum(share.bytes for share in shares) == found.total.bytes


@pytest.mark.parametrize("name", MADE)
def test_the_vocabulary_is_that_of_the_model(name, made):
    folder, model = made(name)
    found = inspected(folder)
    assert (found.tokens.rows, found.tokens.width) == tuple(model.get_input_embeddings().weight.shape)
    assert found.tokens.configured == ROWS
    head = model.get_output_embeddings()
    shared = head is not None and head.weight is model.get_input_embeddings().weight
    assert (found.tokens.head is not None) == (head is not None and not shared)
    assert found.contradictions == ()
    assert found.unrecognised == ()


@pytest.mark.parametrize("name", ONE_STACK)
def test_one_stack_is_what_layer_range_cuts(name, made):
    found = inspected(made(name)[0])
    (module,) = found.modules
    assert module.layers == LAYERS
    assert sorted(layer for kind in module.kinds for layer in kind.layers) == list(range(LAYERS))
    assert found.slicing.modules == ("default",)
    inside = sum(len(kind.layers) * kind.tensors for kind in module.kinds)
    assert inside + len(found.slicing.before) + len(found.slicing.after) == found.total.tensors


def test_equal_layers_are_one_kind(made):
    (module,) = inspected(made("llama")[0]).modules
    (kind,) = module.kinds
    assert (kind.layers, kind.tensors, kind.marks) == ((0, 1, 2, 3), 9, ())
    assert (module.prefix, module.count_key) == ("model.layers", "num_hidden_layers")


def test_kinds_of_layers_say_what_only_they_have(made):
    (module,) = inspected(made("sparse")[0]).modules
    dense = next(kind for kind in module.kinds if kind.layers == (1,))
    sparse = next(kind for kind in module.kinds if kind.layers == (0, 2, 3))
    assert dense.marks == ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
    assert sparse.marks == ("mlp.experts", "mlp.gate")
    hybrid = inspected(made("hybrid")[0]).modules[0]
    assert [(kind.layers, kind.marks) for kind in hybrid.kinds] == [
        ((0, 2), ("linear_attn",)),
        ((1, 3), ("self_attn",)),
    ]
    assert hybrid.settings["layer_types"] == ("linear_attention", "full_attention") * 2


@pytest.mark.parametrize(("name", "layers"), [("mixtral", 4), ("sparse", 3), ("hybrid", 4)])
def test_experts_are_counted(name, layers, made):
    (experts,) = inspected(made(name)[0]).experts
    assert (experts.count, experts.configured, experts.layers, experts.stored) == (2, 2, layers, "per expert")
    assert len(experts.matrices) == 3


def test_fused_experts(tmp_path):
    config = transformers.GptOssConfig(**_SMALL, num_local_experts=3, head_dim=8)
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path)
    (experts,) = inspected(tmp_path).experts
    assert (experts.count, experts.configured, experts.layers, experts.stored) == (3, 3, LAYERS, "fused")


def test_modules_of_a_vision_language_model(made):
    found = inspected(made("llava")[0])
    assert [(module.name, module.layers) for module in found.modules] == [
        ("text_decoder", LAYERS),
        ("vision_tower", 2),
        ("multi_modal_projector", 0),
    ]
    assert found.slicing.modules == ("text_decoder", "vision_tower")
    assert found.slicing.whole == ("multi_modal_projector",)
    projector = next(share for share in found.parts if share.name == "projector")
    assert projector.tensors == found.modules[2].share.tensors


def test_encoder_and_decoder(made):
    found = inspected(made("t5")[0])
    assert {module.name: module.layers for module in found.modules} == {"decoder": 4, "encoder": 4, "shared": 0}
    assert found.tokens.tied
    assert found.tokens.tie_configured


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 9}, "`num_hidden_layers` says 9 layers, `model.layers` has 4"),
        ({"vocab_size": 60}, f"`vocab_size` says 60 tokens, `model.embed_tokens.weight` has {ROWS} rows"),
        (
            {"tie_word_embeddings": True},
            "`lm_head.weight` is stored, and loaders ignore it: config.json ties it to `model.embed_tokens.weight`",
        ),
        ({"dtype": "float16"}, "config.json says dtype float16, the weights are float32"),
    ],
)
def test_contradictions_of_the_config(changes, said, made, tmp_path):
    folder, _ = made("llama")
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    found = inspected(tmp_path)
    assert found.contradictions == (said,)


def test_tied_without_saying_so(made, tmp_path):
    folder, _ = made("llama_tied")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert inspected(tmp_path).contradictions == (
        "there is no output head, and config.json does not tie it to the embedding",
    )


def test_a_tokenizer_with_more_tokens_than_rows(make_model):
    folder = make_model("m", 1)
    assert inspected(folder).tokens.tokenizer == 101
    tokenizer = {"model": {"vocab": {"a": 500}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = inspected(folder)
    assert found.tokens.tokenizer == 501
    assert found.contradictions == ("tokenizer.json has 501 tokens, `model.embed_tokens.weight` has 128 rows",)
    (folder / "tokenizer.json").write_text("no JSON")
    assert inspected(folder).tokens.tokenizer is None


def test_leftovers(make_model):
    import numpy as np

    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.layers.0.gizmo.scale": np.ones(4, np.float32),
        "model.layers.1.gizmo.scale": np.ones(4, np.float32),
        "model.codes": np.ones(4, np.int8),
    }
    found = inspected(make_model("m", 1, extra=extra))
    assert list(found.recomputed) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert set(found.unrecognised) == {"model.codes", "model.layers.*.gizmo.scale"}
    assert found.packed == ("int8",)


def test_quantisation_is_named(make_model):
    folder = make_model("m", 1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert inspected(folder).quantisation == "gptq"


def test_pickles_and_safetensors_are_the_same_model(made, tmp_path):
    folder, model = made("llama")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    pickled, stored = inspected(tmp_path), inspected(folder)
    assert [share.name for share in pickled.files] == ["pytorch_model.bin"]
    for field in ("total", "dtypes", "modules", "parts", "tokens", "contradictions", "unpacked"):
        assert getattr(pickled, field) == getattr(stored, field)


def test_packed_weights_are_counted_unpacked(tmp_path):
    width, rows = 16, 8
    name = "model.layers.0.mlp.up_proj.weight"
    config = {"model_type": "llama", "num_hidden_layers": 1, "quantization_config": {"quant_method": "fp8"}}
    tensors = {
        name: torch.ones(rows, width).to(torch.float8_e4m3fn),
        f"{name}_scale_inv": torch.ones(1, 1),
        "model.norm.weight": torch.ones(width),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {**config["quantization_config"], "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    found = inspected(tmp_path)
    assert (found.quantisation, found.packed) == ("fp8", ("float8_e4m3fn",))
    assert found.unpacked == rows * width + width
    assert found.total.parameters == found.unpacked + 1


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        ("attn.c_attn.weight", "qkv"),
        ("attention.self.query.bias", "q"),
        ("attention.output.dense.weight", "o"),
        ("attention.output.LayerNorm.weight", "norm"),
        ("output.dense.weight", "mlp"),
        ("layer.1.EncDecAttention.o.weight", "o"),
        ("layer.2.DenseReluDense.wo.weight", "mlp"),
        ("attention.wo.weight", "o"),
        ("self_attn.kv_a_proj_with_mqa.weight", "qkv"),
        ("block_sparse_moe.gate.weight", "router"),
        ("block_sparse_moe.experts.3.w2.weight", "experts"),
        ("mlp.shared_experts.up_proj.weight", "shared"),
        ("mixer.out_proj.weight", "mixer"),
        ("mixer.o_proj.weight", "o"),
        ("feed_forward.key.weight", "mlp"),
        ("self_attn.sinks", "attention"),
        ("altup.correction_coefs.weight", "other"),
    ],
)
def test_parts(suffix, part):
    assert part_of(Part("default", 0, suffix, "layer", None, None)) == part
    assert part in PARTS
