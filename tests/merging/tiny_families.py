"""Tiny models of many families with random weights, made and saved by transformers."""

import transformers

WIDTH, ROWS, LAYERS = 32, 64, 4

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_IDS,
}
_LLAMA = {**_SMALL, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": ROWS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, **_IDS}

_T5 = {"vocab_size": ROWS, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4}

FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_LLAMA, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_LLAMA, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_LLAMA, "head_dim": 8, "sliding_window_pattern": 2}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _LLAMA),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _LLAMA),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _LLAMA),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", _LLAMA),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "falcon": ("FalconForCausalLM", "FalconConfig", _SMALL),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 2}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_LLAMA, "num_experts": 2, "moe_intermediate_size": 16}),
    "bert": ("BertForMaskedLM", "BertConfig", _SMALL),
    "bert_bare": ("BertModel", "BertConfig", _SMALL),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _SMALL),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
}
"""Class of the model, class of its config, and settings, by a short name."""

STORAGE = {"mistral": "bfloat16", "phi3": "float16", "qwen2": "bfloat16", "mixtral": "bfloat16", "gpt2": "float16"}
"""Dtype of those families that are not saved in float32."""

TWO_STACKS = {"t5"}
"""Families that top-level `slices` cannot cut."""

SHARDED = {"llama": "40KB", "qwen3": "60KB", "neox": "50KB"}
"""Size of a shard of those families that are saved in several."""


def make_family(name, root):
    """Save a base and the fine-tunes a, b and c of it; returns their folder."""
    import torch

    model_class, config_class, settings = FAMILIES[name]
    config = getattr(transformers, config_class)(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    for seed, who in enumerate(("base", "a", "b", "c")):
        torch.manual_seed(seed)
        noisy = {
            key: value + 0.01 * seed * torch.randn(value.shape) if value.is_floating_point() else value
            for key, value in base.items()
        }
        model.load_state_dict(noisy)
        model.tie_weights()
        stored = model.to(getattr(torch, STORAGE.get(name, "float32")))
        stored.save_pretrained(root / who, max_shard_size=SHARDED.get(name, "5GB"))
        model = stored.to(torch.float32)
    return root


def load(folder):
    """What transformers makes of a model folder: the model, and its report of the loading."""
    (architecture,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
