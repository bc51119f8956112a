"""Tiny dense models with random weights, made and saved by transformers, with a tokenizer of bytes."""

import json

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS, WIDTH, INNER, ROWS = 2, 32, 48, 150
SMALL = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "llama": ("Llama", {}),
    "llama_bias": ("Llama", {"attention_bias": True}),
    "llama_mlp_bias": ("Llama", {"mlp_bias": True}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "phi3": ("Phi3", {}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "olmo2": ("Olmo2", {}),
    "gpt_neox": ("GPTNeoX", {}),
}
"""Beginning of the names of classes, and settings, by a short name."""


def make_model(folder, kind, seed, dtype=torch.float32, **more):
    """Save a model; biases and norms are random as well, so that nothing can be lost unseen."""
    stem, settings = KINDS[kind]
    small = {key: value for key, value in SMALL.items() if kind != "gpt_neox" or key != "num_key_value_heads"}
    config = getattr(transformers, f"{stem}Config")(**{**small, **settings, **more})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{stem}ForCausalLM")(config)
    with torch.no_grad():
        for entries in model.parameters():
            entries.add_(torch.randn_like(entries) * 0.05)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_tokenizer(folder):
    """Tokens are printable bytes; BOS is `<s>`, and there is no padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: ROWS - 3]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + place for place, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tensors(folder):
    """All tensors of a model that is in one file."""
    return load_file(folder / "model.safetensors")


def load(folder):
    """A model in float32, and what transformers missed or did not expect."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    return model.eval(), {name: found for name, found in report.items() if found}


@torch.no_grad()
def logits(model, length=24):
    """What a model says about the same random tokens every time."""
    ids = torch.randint(ROWS, (2, length), generator=torch.Generator().manual_seed(5))
    return model(ids).logits
