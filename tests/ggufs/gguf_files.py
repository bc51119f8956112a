"""Write GGUF files as llama.cpp's converters do: names by the library's table, rows and norms as llama.cpp has them."""

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import quantize

WIDTH, ROWS, LAYERS = 64, 96, 2

_SIZES = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_theta": 20000.0,
    "initializer_range": 0.3,
}
_GEMMA = {**_SIZES, "head_dim": 32}
_SOFTCAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}

ARCHITECTURES = {
    "llama": ("Llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama3": (
        "Llama",
        {
            **_SIZES,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "mistral": ("Mistral", {**_SIZES, "sliding_window": 8}),
    "qwen2": ("Qwen2", {key: value for key, value in _SIZES.items() if key != "head_dim"}),
    "qwen3": ("Qwen3", {**_SIZES, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", {**_GEMMA, **_SOFTCAPS, "sliding_window": 8, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3", {**_GEMMA, "sliding_window": 8, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3", {**_SIZES, "sliding_window": 8, "partial_rotary_factor": 0.5}),
}
"""Prefix of the classes, and settings, by the name of the architecture (llama3 is llama to GGUF)."""


def make_model(name):
    """A random model, norms and biases included."""
    prefix, settings = ARCHITECTURES[name]
    config_class = "Gemma3TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key or key.endswith(".bias"):
                value += 0.2 * torch.randn(value.shape)
    return model


def in_pairs(rows, heads):
    """Rows with the halves of every head interleaved, as llama.cpp turns them."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def as_llama_cpp(name, tensor, model):
    """The entries of a tensor as they stand in a GGUF file."""
    config = model.config
    if config.model_type in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return in_pairs(tensor, heads)
    return tensor + 1 if config.model_type.startswith("gemma") and name.endswith("norm.weight") else tensor


def gguf_tensors(name, model):
    """Names and entries of a GGUF file."""
    kind = gguf_name(name)
    arch = next(
        key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == ("llama" if kind == "mistral" else kind)
    )
    names = gguf.get_tensor_name_map(arch, LAYERS)
    tied = model.config.tie_word_embeddings
    for key, value in model.state_dict().items():
        if not (tied and key == "lm_head.weight"):
            renamed = names.get_name(key, try_suffixes=(".weight", ".bias"))
            yield renamed, as_llama_cpp(key, value.numpy(), model)
    if name == "llama3":
        half = model.config.head_dim // 2
        plain = 1 / 20000.0 ** (np.arange(half) / half)
        yield "rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)


def gguf_name(name):
    return "llama" if name == "llama3" else name


def _settings(name, config):
    theta = config.rope_parameters
    theta = theta.get("full_attention", theta)["rope_theta"]
    yield "vocab_size", config.vocab_size
    yield "context_length", config.max_position_embeddings
    yield "embedding_length", config.hidden_size
    yield "block_count", config.num_hidden_layers
    yield "feed_forward_length", config.intermediate_size
    yield "attention.head_count", config.num_attention_heads
    yield "attention.head_count_kv", config.num_key_value_heads
    yield "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)
    yield "rope.freq_base", float(theta)
    head = getattr(config, "head_dim", None)
    if head and head != config.hidden_size // config.num_attention_heads:
        yield "attention.key_length", head
        yield "attention.value_length", head
    if name == "phi3":
        yield "rope.dimension_count", 8
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            yield key, float(getattr(config, key))
    if getattr(config, "sliding_window", None) and name != "qwen2":
        yield "attention.sliding_window", config.sliding_window


def write_gguf(file, name, model, quantisation="F32", metadata=None, tensors=None, kind=None):
    """Write a model; matrices in a quantisation that the library can make, vectors in F32.

    Parameters:
        name: of the architecture.
        metadata: settings beside those of the model, or instead of them.
        tensors: further ones.
        kind: what the file calls the architecture, if that is to be wrong.
    """
    kind = kind or gguf_name(name)
    writer = gguf.GGUFWriter(file, kind)
    for key, value in {**dict(_settings(name, model.config)), **(metadata or {})}.items():
        full = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{kind}.{key}"
        add(writer, full, value)
    for key, value in {**dict(gguf_tensors(name, model)), **(tensors or {})}.items():
        code = gguf.GGMLQuantizationType[quantisation if value.ndim == 2 else "F32"]
        writer.add_tensor(key, quantize(np.ascontiguousarray(value), code), raw_dtype=code)
    return finish(writer, file)


def add(writer, key, value):
    """Add a setting of any type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def finish(writer, file):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def load(folder):
    """Load a model folder as transformers does, in float32, and insist on every key."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 7, 90, 33, 60, 2, 8, 14, 3, 77, 41]])).logits
