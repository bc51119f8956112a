"""Make checkpoints of large models that have every header and no weight: their files are holes, and take no room.

    python benchmarks/make_hollow.py 70b hollow/70b --models 4
    python benchmarks/make_hollow.py 671b hollow/671b --models 3

`mergekit plan` says about them what it would say about the real ones. The folders are base, 1, 2, and so on.
"""

import argparse
import json
from math import prod
from pathlib import Path

SHARD = 5_000_000_000  # bytes of tensors in a file, at most


def llama(layers=80, width=8192, inner=28672, rows=128256, keys=1024):
    """Llama 3 70B."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    layer = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        "post_attention_layernorm.weight": (width,),
        **_mlp("mlp", width, inner),
    }
    shapes = {f"model.layers.{number}.{name}": shape for number in range(layers) for name, shape in layer.items()}
    return config, _whole(shapes, rows, width)


def deepseek(layers=61, dense=3, experts=256, width=7168, inner=18432, small=2048, rows=129280):
    """DeepSeek V3, in bfloat16 and without the layers that predict several tokens."""
    heads, query, key, nope, rope, value = 128, 1536, 512, 128, 64, 128
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": width,
        "intermediate_size": inner,
        "moe_intermediate_size": small,
        "num_hidden_layers": layers,
        "first_k_dense_replace": dense,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": query,
        "kv_lora_rank": key,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    attention = {
        "input_layernorm.weight": (width,),
        "self_attn.q_a_proj.weight": (query, width),
        "self_attn.q_a_layernorm.weight": (query,),
        "self_attn.q_b_proj.weight": (heads * (nope + rope), query),
        "self_attn.kv_a_proj_with_mqa.weight": (key + rope, width),
        "self_attn.kv_a_layernorm.weight": (key,),
        "self_attn.kv_b_proj.weight": (heads * (nope + value), key),
        "self_attn.o_proj.weight": (width, heads * value),
        "post_attention_layernorm.weight": (width,),
    }
    mixture = {
        "mlp.gate.weight": (experts, width),
        "mlp.gate.e_score_correction_bias": (experts,),
        **_mlp("mlp.shared_experts", width, small),
    }
    for expert in range(experts):
        mixture |= _mlp(f"mlp.experts.{expert}", width, small)
    shapes = {}
    for number in range(layers):
        own = _mlp("mlp", width, inner) if number < dense else mixture
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in {**attention, **own}.items()}
    return config, _whole(shapes, rows, width)


def _mlp(stem, width, inner):
    up, down = (inner, width), (width, inner)
    return {f"{stem}.gate_proj.weight": up, f"{stem}.up_proj.weight": up, f"{stem}.down_proj.weight": down}


def _whole(shapes, rows, width):
    first, last = {"model.embed_tokens.weight": (rows, width)}, {"model.norm.weight": (width,)}
    return {**first, **shapes, **last, "lm_head.weight": (rows, width)}


SIZES = {"70b": llama, "671b": deepseek}


def write(folder, config, shapes):
    """A model folder of bfloat16 tensors that nobody has written."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    groups, size = [{}], 0
    for name, shape in shapes.items():
        if groups[-1] and size + 2 * prod(shape) > SHARD:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += 2 * prod(shape)
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _hollow(folder / file, group)
        weight_map |= dict.fromkeys(group, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _hollow(file, shapes):
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.truncate(8 + len(head) + end)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=3)
    given = parser.parse_args()
    for name in ["base", *map(str, range(1, given.models))]:
        write(given.folder / name, *SIZES[given.size]())


if __name__ == "__main__":
    main()
