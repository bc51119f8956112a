"""Write the sound inputs that the fuzzer begins with: `python tests/fuzz/make_seeds.py` (needs torch and gguf)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581a", "<0x0A>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 8,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]},
}
WEIGHTS = {
    "model.embed_tokens.weight": np.ones((8, 4), np.float32),
    "model.layers.0.mlp.up_proj.weight": np.full((4, 4), 0.5, np.float32),
    "model.norm.weight": np.ones(4, np.float32),
}


def write(name: str, content: bytes | str | object) -> None:
    """Write a seed; what is neither bytes nor text is JSON."""
    file = HERE / "seeds" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (bytes, str)) else json.dumps(content, indent=1)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def headers() -> None:
    """Files of safetensors."""
    write("header/seed_two", save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}, {"format": "pt"}))
    write("header/seed_empty", save({"none": np.zeros((0, 3), np.float16), "one": np.ones((), np.float64)}))
    write("header/seed_model", save(WEIGHTS))
    write("model/seed_llama", save(WEIGHTS))
    experts = {f"model.layers.0.mlp.experts.{n}.w1.weight": np.ones((2, 4), np.float16) for n in range(2)}
    write("model/seed_experts", save({**WEIGHTS, **experts, "lm_head.weight": np.ones((8, 4), np.float32)}))


def pickles() -> None:
    """Files of `torch.save`, of both kinds."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16).expand(2, 3)}
    whole = {"epoch": 3, "state_dict": {**tensors, "t": tensors["a"].t(), "n": torch.nn.Parameter(torch.ones(2))}}
    for kind in ("zip", "legacy"):
        for name, value in (("plain", tensors), ("whole", whole)):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=kind == "zip")
            write(f"pickle/seed_{kind}_{name}", stream.getvalue())


def ggufs() -> None:
    """A Llama with a vocabulary, in F32 and in Q8_0."""
    for kind in ("F32", "Q8_0"):
        file = HERE / "seeds" / "gguf" / f"seed_{kind.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(file, "llama")
        for key, value in {
            "embedding_length": 32,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "block_count": 1,
            "feed_forward_length": 32,
            "context_length": 64,
        }.items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_float32("llama.rope.freq_base", 10000.0)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(TOKENS)
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 6])
        writer.add_token_scores([float(-index) for index in range(8)])
        writer.add_bos_token_id(1)
        writer.add_chat_template("{{ messages }}")
        code = gguf.GGMLQuantizationType[kind]
        for name, shape in (("token_embd", (8, 32)), ("blk.0.attn_q", (32, 32)), ("blk.0.attn_k", (16, 32))):
            array = gguf.quants.quantize(np.ones(shape, np.float32), code)
            writer.add_tensor(f"{name}.weight", array, raw_dtype=code)
        writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def recipes() -> None:
    """One of each form."""
    write(
        "recipe/seed_ties.yml",
        "merge_method: ties\nbase_model: org/base@main\nmodels:\n  - model: a\n    parameters:\n"
        "      density: [0.1, 0.9]\n      weight:\n        - {filter: mlp, value: 0.5}\n        - value: 1.0\n"
        "parameters: {normalize: true, lambda: 1.0}\ndtype: float32\nout_dtype: bfloat16\n",
    )
    write(
        "recipe/seed_slices.yml",
        "slices:\n- sources: [{model: a, layer_range: [0, 4]}]\n"
        "- sources:\n  - {model: b+adapter, layer_range: [2, 6]}\n"
        "merge_method: passthrough\n",
    )
    write(
        "recipe/seed_tokens.yml",
        "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]\nmerge_method: linear\n"
        "tokenizer:\n  source: union\n  tokens:\n    <x>: {source: b, force: true}\n    <y>: {source: {kind: zero}}\n"
        "chat_template: chatml\n",
    )
    write(
        "recipe/seed_alias.yml",
        "w: &w {weight: 0.5}\nmerge_method: linear\nmodels:\n- model: a\n  parameters: *w\n- model: b\n  parameters:\n"
        "    <<: *w\n".replace("w: &w {weight: 0.5}\n", "").replace("*w\n- ", "&w {weight: 0.5}\n- "),
    )


def others() -> None:
    """Adapters, tokenizers, indices, configs and a report."""
    lora = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"layers.0.*_proj": 4}}
    more = {"alpha_pattern": {"^model.norm": 2}, "trainable_token_indices": {"embed_tokens": [1, 2]}}
    write("adapter/seed_lora.json", {**lora, **more, "use_rslora": True, "init_lora_weights": True})
    write("adapter/seed_small.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": number, "content": text, **flags, "special": True} for number, text in enumerate(TOKENS[:3])]
    vocab = {text: number for number, text in enumerate(TOKENS)}
    bpe = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": [["a", "b"]]}
    write("tokenizer/seed_bpe.json", {"version": "1.0", "added_tokens": added, "model": bpe})
    pieces = {"type": "Unigram", "unk_id": 0, "vocab": [[text, -float(n)] for n, text in enumerate(TOKENS)]}
    write("tokenizer/seed_unigram.json", {"version": "1.0", "added_tokens": added, "model": pieces})
    write("config/config.json", {key: value for key, value in CONFIG.items() if key != "quantization_config"})
    write("config/seed_plain.json", (HERE / "seeds/config/config.json").read_text())
    write("config/seed_fp8.json", {**CONFIG, "num_hidden_layers": 1})
    write("config/model.safetensors", save(WEIGHTS))
    names = list(WEIGHTS)
    shards = {f"model-0000{n}-of-00002.safetensors": part for n, part in ((1, names[:2]), (2, names[2:]))}
    for shard, part in shards.items():
        write(f"index/{shard}", save({name: WEIGHTS[name] for name in part}))
    places = {name: shard for shard, part in shards.items() for name in part}
    write("index/seed_two.json", {"metadata": {"total_size": 208}, "weight_map": places})


def report() -> None:
    """What a merge says of itself."""
    import hashlib
    import tempfile

    from mergekit.merging import merge_recipe

    folder = HERE / "seeds" / "config"
    with tempfile.TemporaryDirectory() as place:
        merge_recipe(f"merge_method: passthrough\nmodels: [{{model: {folder}}}]\n", Path(place, "out"))
        merged = Path(place, "out")
        text = json.loads((merged / "merge_report.json").read_text())
        recipe = "merge_method: passthrough\nmodels: [{model: /nowhere/model}]\n"
        text["recipe_sha256"] = hashlib.sha256(recipe.encode()).hexdigest()
        write("report/mergekit_config.yml", recipe)
        for parent in text["parents"]:
            parent["model"] = parent["folder"] = "/nowhere/model"
        write("report/seed_copy.json", text)
        write("report/model.safetensors", (merged / "model.safetensors").read_bytes())


if __name__ == "__main__":
    for make in (headers, pickles, ggufs, recipes, others, report):
        make()
