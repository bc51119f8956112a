from __future__ import annotations

import pytest
from layout_families import FAMILIES, family

from mergekit.layout import Layout, Stack, read_layout

STACKS = {
    "llama": {"default": ("model.layers", 4, "num_hidden_layers")},
    "mistral": {"default": ("model.layers", 4, "num_hidden_layers")},
    "mixtral": {"default": ("model.layers", 4, "num_hidden_layers")},
    "qwen2": {"default": ("model.layers", 4, "num_hidden_layers")},
    "qwen3": {"default": ("model.layers", 4, "num_hidden_layers")},
    "qwen3_moe": {"default": ("model.layers", 4, "num_hidden_layers")},
    "gemma2": {"default": ("model.layers", 4, "num_hidden_layers")},
    "phi3": {"default": ("model.layers", 4, "num_hidden_layers")},
    "lfm2": {"default": ("model.layers", 4, "num_hidden_layers")},
    "deepseek_v3": {"default": ("model.layers", 4, "num_hidden_layers")},
    "gpt2": {"default": ("transformer.h", 3, "n_layer")},
    "gptj": {"default": ("transformer.h", 3, "n_layer")},
    "gpt_neox": {"default": ("gpt_neox.layers", 4, "num_hidden_layers")},
    "falcon": {"default": ("transformer.h", 4, "num_hidden_layers")},
    "bloom": {"default": ("transformer.h", 2, "n_layer")},
    "mpt": {"default": ("transformer.blocks", 2, "n_layers")},
    "opt": {"default": ("model.decoder.layers", 4, "num_hidden_layers")},
    "mamba": {"default": ("backbone.layers", 2, "num_hidden_layers")},
    "bert": {"default": ("encoder.layer", 4, "num_hidden_layers")},
    "bert_masked_lm": {"default": ("bert.encoder.layer", 4, "num_hidden_layers")},
    "roberta": {"default": ("roberta.encoder.layer", 4, "num_hidden_layers")},
    "distilbert": {"default": ("distilbert.transformer.layer", 2, "n_layers")},
    "modernbert": {"default": ("model.layers", 4, "num_hidden_layers")},
    "t5": {"decoder": ("decoder.block", 3, "num_decoder_layers"), "encoder": ("encoder.block", 2, "num_layers")},
    "whisper": {
        "decoder": ("model.decoder.layers", 3, "decoder_layers"),
        "encoder": ("model.encoder.layers", 2, "encoder_layers"),
    },
    "bart": {
        "decoder": ("model.decoder.layers", 3, "decoder_layers"),
        "encoder": ("model.encoder.layers", 2, "encoder_layers"),
    },
    "llava": {
        "text_decoder": ("model.language_model.layers", 4, "text_config.num_hidden_layers"),
        "vision_tower": ("model.vision_tower.encoder.layers", 2, "vision_config.num_hidden_layers"),
    },
    "gemma3": {
        "text_decoder": ("model.language_model.layers", 4, "text_config.num_hidden_layers"),
        "vision_tower": ("model.vision_tower.encoder.layers", 4, "vision_config.num_hidden_layers"),
    },
    "qwen2_5_vl": {
        "text_decoder": ("model.language_model.layers", 4, "text_config.num_hidden_layers"),
        "vision_tower": ("model.visual.blocks", 2, "vision_config.depth"),
    },
    "qwen3_vl": {
        "text_decoder": ("model.language_model.layers", 4, "text_config.num_hidden_layers"),
        "vision_tower": ("model.visual.blocks", 2, "vision_config.depth"),
    },
}

# The peer's listings of tensors before and after the stack, without those that its shipped models lack.
PRE_AND_POST = {
    "llama": ("model.embed_tokens", "lm_head model.norm"),
    "gpt2": ("transformer.wpe transformer.wte", "lm_head transformer.ln_f"),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.final_layer_norm lm_head"),
    "falcon": ("transformer.word_embeddings", "lm_head transformer.ln_f"),
    "bloom": ("transformer.word_embeddings transformer.word_embeddings_layernorm", "lm_head transformer.ln_f"),
    "mamba": ("backbone.embeddings", "backbone.norm_f lm_head"),
    # On purpose unlike the peer's table: this is the norm after the last layer.
    "lfm2": ("model.embed_tokens", "lm_head model.embedding_norm"),
    "bert": (
        "embeddings.LayerNorm embeddings.position_embeddings embeddings.token_type_embeddings "
        "embeddings.word_embeddings",
        "pooler.dense",
    ),
    "bert_masked_lm": (
        "bert.embeddings.LayerNorm bert.embeddings.position_embeddings bert.embeddings.token_type_embeddings "
        "bert.embeddings.word_embeddings",
        "cls.predictions cls.predictions.decoder cls.predictions.transform.LayerNorm cls.predictions.transform.dense",
    ),
    "distilbert": (
        "distilbert.embeddings.LayerNorm distilbert.embeddings.position_embeddings "
        "distilbert.embeddings.word_embeddings",
        "classifier pre_classifier",
    ),
    "modernbert": (
        "model.embeddings.norm model.embeddings.tok_embeddings",
        "decoder head.dense head.norm model.final_norm",
    ),
    "t5": (
        "decoder.embed_tokens encoder.embed_tokens shared",
        "decoder.final_layer_norm encoder.final_layer_norm lm_head",
    ),
    "whisper": (
        "model.decoder.embed_positions model.decoder.embed_tokens model.encoder.conv1 model.encoder.conv2 "
        "model.encoder.embed_positions",
        "model.decoder.layer_norm model.encoder.layer_norm proj_out",
    ),
    "llava": (
        "model.language_model.embed_tokens model.multi_modal_projector.linear_1 model.multi_modal_projector.linear_2 "
        "model.vision_tower.embeddings.class_embedding model.vision_tower.embeddings.patch_embedding "
        "model.vision_tower.embeddings.position_embedding model.vision_tower.pre_layrnorm",
        "lm_head model.language_model.norm model.vision_tower.post_layernorm",
    ),
}


def layout_of(name: str) -> Layout:
    built = family(name)
    return read_layout(built.shapes, built.config)


def on_side(layout: Layout, side: str) -> str:
    names = {name.removesuffix(".weight").removesuffix(".bias") for name, p in layout.parts.items() if p.side == side}
    return " ".join(sorted(names))


@pytest.mark.parametrize("name", FAMILIES)
def test_stacks_of_each_family(name: str) -> None:
    found = {module.name: module.stack for module in layout_of(name).modules if module.stack}
    assert {name: (s.prefix, s.count, s.count_key) for name, s in found.items()} == STACKS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_has_one_part_and_layer_names_can_be_rebuilt(name: str) -> None:
    layout = layout_of(name)
    modules = {module.name: module for module in layout.modules}
    assert list(layout.parts) == list(family(name).shapes)
    for tensor, part in layout.parts.items():
        stack = modules[part.module].stack
        assert (part.layer is not None) == (part.side == "layer")
        assert tensor == (part.suffix if part.layer is None else stack and stack.name(part.layer, part.suffix))


def parameters(model: object, module: object) -> set[str]:
    """Names of all parameters that are the module's weight, tied ones included."""
    weight = getattr(module, "weight", None)
    named = model.named_parameters(remove_duplicate=False)  # type: ignore[attr-defined]
    return {name for name, parameter in named if parameter is weight}


@pytest.mark.parametrize("name", FAMILIES)
def test_embedding_and_head_are_those_of_transformers(name: str) -> None:
    layout, model = layout_of(name), family(name).model
    embeddings = parameters(model, model.get_input_embeddings())
    heads = parameters(model, model.get_output_embeddings())
    assert layout.embedding in embeddings
    assert (layout.head in heads) if heads else (layout.head is None)
    rows = {tensor: part.role for tensor, part in layout.parts.items() if part.vocab_axis is not None}
    assert {tensor for tensor, role in rows.items() if role in ("embedding", "head")} == embeddings | heads
    assert all(97 in family(name).shapes[tensor] for tensor in rows)


@pytest.mark.parametrize("name", PRE_AND_POST)
def test_sides_are_those_of_the_listings(name: str) -> None:
    layout = layout_of(name)
    assert (on_side(layout, "pre"), on_side(layout, "post")) == PRE_AND_POST[name]


def test_bias_of_the_head_counts_tokens() -> None:
    parts = layout_of("bert_masked_lm").parts
    assert (parts["cls.predictions.bias"].role, parts["cls.predictions.bias"].vocab_axis) == ("head_bias", 0)
    parts = layout_of("bart").parts
    assert (parts["final_logits_bias"].role, parts["final_logits_bias"].vocab_axis) == ("head_bias", 1)


@pytest.mark.parametrize(
    ("name", "module", "tensor"),
    [
        ("qwen2_5_vl", "multi_modal_projector", "model.visual.merger.mlp.0.weight"),
        ("qwen3_vl", "multi_modal_projector", "model.visual.deepstack_merger_list.1.norm.weight"),
        ("qwen3_vl", "vision_tower", "model.visual.pos_embed.weight"),
        ("gemma3", "multi_modal_projector", "model.multi_modal_projector.mm_input_projection_weight"),
        ("gemma3", "text_decoder", "lm_head.weight"),
        ("t5", "shared", "shared.weight"),
        ("t5", "shared", "lm_head.weight"),
        ("t5", "encoder", "encoder.final_layer_norm.weight"),
        ("bart", "shared", "model.shared.weight"),
        ("whisper", "decoder", "proj_out.weight"),
    ],
)
def test_unnumbered_tensors_go_to_the_nearest_module(name: str, module: str, tensor: str) -> None:
    part = layout_of(name).parts[tensor]
    assert (part.module, part.layer) == (module, None)


@pytest.mark.parametrize(
    ("name", "main", "alias", "module"),
    [
        ("llama", "default", "model.layers", "default"),
        ("whisper", "decoder", "model.encoder.layers", "encoder"),
        ("gemma3", "text_decoder", "vision_model", "vision_tower"),
        ("qwen3_vl", "text_decoder", "model.language_model.layers", "text_decoder"),
    ],
)
def test_modules_answer_to_aliases(name: str, main: str, alias: str, module: str) -> None:
    layout = layout_of(name)
    found = layout.module(alias)
    assert layout.main.name == main
    assert found is not None
    assert found.name == module
    assert layout.module("text decoder") is None


def decoder(count: int, *, prefix: str = "model.layers", rows: int = 97) -> dict[str, tuple[int, ...]]:
    layers = {f"{prefix}.{i}.{part}.weight": (8, 8) for i in range(count) for part in ("attn", "mlp")}
    return {"model.embed_tokens.weight": (rows, 8), **layers, "model.norm.weight": (8,)}


CONFIG = {"num_hidden_layers": 3, "vocab_size": 97}


def test_one_layer_is_a_stack() -> None:
    layout = read_layout(decoder(1), {"num_hidden_layers": 1, "vocab_size": 97})
    assert layout.main.stack == Stack("model.layers", 1, "num_hidden_layers")


def test_prediction_layers_come_after_the_stack_and_move_with_it() -> None:
    shapes = {**decoder(4), "model.layers.3.embed_tokens.weight": (97, 8)}
    layout = read_layout(shapes, {**CONFIG, "num_nextn_predict_layers": 1})
    part = layout.parts["model.layers.3.mlp.weight"]
    assert layout.main.stack == Stack("model.layers", 3, "num_hidden_layers")
    assert (part.layer, part.side, part.suffix) == (None, "post", "model.layers.3.mlp.weight")
    assert layout.parts["model.layers.3.embed_tokens.weight"].vocab_axis == 0
    assert layout.embedding == "model.embed_tokens.weight"
    assert layout.renumbered("model.layers.3.mlp.weight", {"default": 5}) == "model.layers.5.mlp.weight"
    assert layout.renumbered("model.norm.weight", {"default": 5}) == "model.norm.weight"


def test_embedding_and_head_may_be_numbered_with_the_layers() -> None:
    layers = {f"layers.{i}.{part}": (8, 8) for i in (1, 2, 3) for part in ("mixer.weight", "mlp.weight")}
    shapes = {
        "layers.0.wte.weight": (97, 8),
        **layers,
        "layers.4.linear.weight": (97, 8),
        "layers.4.linear.bias": (97,),
    }
    layout = read_layout(shapes, {"n_layer": 3, "vocab_size": 97})
    assert layout.main.stack == Stack("layers", 3, "n_layer", first=1)
    assert layout.parts["layers.1.mlp.weight"].layer == 0
    assert (layout.embedding, layout.parts["layers.0.wte.weight"].side) == ("layers.0.wte.weight", "pre")
    assert (layout.head, layout.parts["layers.4.linear.bias"].role) == ("layers.4.linear.weight", "head_bias")
    assert layout.renumbered("layers.4.linear.bias", {"default": 6}) == "layers.7.linear.bias"


def test_a_stack_needs_no_config() -> None:
    layout = read_layout({**decoder(3), "model.adapters.0.weight": (8, 8)}, {})
    assert layout.main.stack == Stack("model.layers", 3, None)
    assert layout.embedding == "model.embed_tokens.weight"


def test_a_stack_with_gaps_is_none() -> None:
    shapes = decoder(3)
    shapes = {name: shape for name, shape in shapes.items() if ".1." not in name}
    layout = read_layout(shapes, CONFIG)
    assert layout.main.stack is None
    assert {part.module for part in layout.parts.values()} == {"default"}


def test_names_that_begin_with_a_number_are_in_no_layer() -> None:
    layout = read_layout({"0.weight": (8, 8), "1.0.weight": (8, 8), "1.1.weight": (8, 8)}, {})
    assert [module.stack for module in layout.modules] == [None]
    assert all(part.layer is None for part in layout.parts.values())


@pytest.mark.parametrize("configured", [90, 97, 110, None])
def test_the_embedding_decides_when_the_config_disagrees(configured: int | None) -> None:
    shapes = {**decoder(3), "lm_head.weight": (97, 8)}
    layout = read_layout(shapes, {**CONFIG, "vocab_size": configured} if configured else {"num_hidden_layers": 3})
    assert (layout.embedding, layout.head) == ("model.embed_tokens.weight", "lm_head.weight")
    assert layout.vocab_key == ("vocab_size" if configured else None)


def test_tables_of_other_things_are_no_vocabulary_even_at_its_size() -> None:
    others = {
        "transformer.wpe.weight": (97, 8),
        "transformer.embeddings.position_embeddings.weight": (97, 8),
        "transformer.embeddings.token_type_embeddings.weight": (97, 8),
        "score.weight": (97, 8),
        "model.norm.bias": (97,),
    }
    layout = read_layout({**decoder(3), **others}, CONFIG)
    assert all(layout.parts[name].vocab_axis is None for name in others)
    assert all(layout.parts[name].role is None for name in others)


@pytest.mark.parametrize(
    ("config", "head", "tied"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),
        ({"text_config": {"tie_word_embeddings": True}}, True, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True, False),
        ({"vision_config": {"tie_word_embeddings": True}}, True, False),
    ],
)
def test_tied(config: dict[str, object], head: bool, tied: bool) -> None:
    shapes = {**decoder(3), **({"lm_head.weight": (97, 8)} if head else {})}
    assert read_layout(shapes, {**CONFIG, **config}).tied is tied


def test_one_count_for_two_stacks_is_shared() -> None:
    shapes = {**decoder(3, prefix="encoder.block"), **decoder(3, prefix="decoder.block")}
    layout = read_layout(shapes, {"num_layers": 3, "vocab_size": 97})
    assert {m.name: m.stack and m.stack.count_key for m in layout.modules} == {
        "decoder": "num_layers",
        "encoder": "num_layers",
    }


def test_a_list_of_layer_kinds_is_a_count() -> None:
    kinds = {"0.mamba": (8, 8), "0.norm": (8,), "1.attn": (8, 8), "2.mlp": (8, 8)}
    shapes = {f"language_model.layers.{name}": shape for name, shape in kinds.items()}
    shapes |= decoder(2, prefix="vision_model.layers")
    config = {"llm_config": {"layers_block_type": ["mamba", "attention", "mlp"]}, "vision_config": {"depth": 2}}
    layout = read_layout(shapes, config)
    assert layout.main.stack == Stack("language_model.layers", 3, None, config_path="llm_config")


def test_what_predicts_further_tokens_is_a_module_of_its_own() -> None:
    beside = {"mtp.fc.weight": (8, 16), "mtp.layers.0.mlp.weight": (8, 8), "mtp.embed_tokens.weight": (97, 8)}
    behind = {f"model.layers.3.{part}.weight": (8, 8) for part in ("attn", "mlp", "eh_proj")}
    for further, config in ((beside, CONFIG), (behind, {**CONFIG, "num_nextn_predict_layers": 1})):
        layout = read_layout({**decoder(3), **further}, config)
        assert [module.name for module in layout.modules] == ["default", "multi_token_prediction"]
        assert layout.module("mtp") is layout.modules[1]
        assert {name for name, part in layout.parts.items() if part.module == "multi_token_prediction"} == set(further)
        assert {layout.parts[name].side for name in further} == {"post"}
        assert layout.main.stack == Stack("model.layers", 3, "num_hidden_layers")
        assert layout.embedding == "model.embed_tokens.weight"
    assert [module.name for module in read_layout(decoder(3), CONFIG).modules] == ["default"]


def test_a_head_for_further_tokens_is_not_the_head() -> None:
    further = {"mtp.shared_head.head.weight": (97, 8)}
    layout = read_layout({**decoder(3), **further}, CONFIG)
    assert (layout.head, layout.tied) == (None, True)
    assert layout.parts["mtp.shared_head.head.weight"].vocab_axis == 0
    assert read_layout({**decoder(3), **further, "lm_head.weight": (97, 8)}, CONFIG).head == "lm_head.weight"
