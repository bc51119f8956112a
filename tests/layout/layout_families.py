"""Tiny models of many families, built by transformers on the meta device: names, shapes and config.json as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 97, "n_embd": 16, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 4, "out_hidden_size": 16}
ENCODER_DECODER = {
    "vocab_size": 97,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
DEEPSEEK = {
    **LLAMA,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
}
T5 = {"vocab_size": 97, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 2}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**LLAMA, "num_experts": 2, "mlp_only_layers": [1]}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", LLAMA),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", {**LLAMA, "layer_types": ["conv", "full_attention", "conv", "conv"]}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL),
    "falcon": ("FalconForCausalLM", "FalconConfig", SMALL),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 97, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 97, "d_model": 16, "n_layers": 2, "n_heads": 4}),
    "opt": ("OPTForCausalLM", "OPTConfig", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2}),
    "bert": ("BertModel", "BertConfig", SMALL),
    "bert_masked_lm": ("BertForMaskedLM", "BertConfig", SMALL),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", SMALL),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 97, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
    ),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", {**SMALL, "cls_token_id": 1, "sep_token_id": 2}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**ENCODER_DECODER, "num_mel_bins": 8}),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**ENCODER_DECODER, "forced_eos_token_id": None}),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **LLAMA},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"text_config": {**LLAMA, "head_dim": 4}, "vision_config": {**VISION, "num_hidden_layers": 4}},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {"text_config": LLAMA, "vision_config": QWEN_VISION},
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            # As many mergers as blocks: the count alone must not make a stack of them.
            "text_config": {**LLAMA, "head_dim": 4},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        },
    ),
}


@dataclass(frozen=True)
class Family:
    model: Any
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]

    @property
    def text(self) -> str:
        return json.dumps(self.config, indent=2, sort_keys=True) + "\n"


def build(name: str, **changes: Any) -> Family:
    model_class, config_class, settings = FAMILIES[name]
    config = getattr(transformers, config_class)(**{**settings, **changes})
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return Family(model, shapes, json.loads(config.to_json_string(use_diff=False)))


family: Callable[[str], Family] = cache(build)
