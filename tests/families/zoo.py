"""The families of the matrix, and tiny checkpoints of them, made and saved by transformers."""

import shutil

from shrinking import small_settings

GROUPS = ("causal", "encoder", "seq2seq", "vision-language", "audio", "dual")

_WANTED = {
    "encoder": """albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm
        eurobert flaubert fnet funnel longformer luke megatron-bert mobilebert modernbert mpnet mra nystromformer
        rembert roberta roberta-prelayernorm roformer squeezebert xlm-roberta xlm-roberta-xl xmod yoso""",
    "seq2seq": """bart bigbird_pegasus blenderbot blenderbot-small led longt5 m2m_100 marian mbart mt5 mvp nllb-moe
        pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2 umt5""",
    "audio": """whisper speech_to_text speecht5 moonshine granite_speech qwen2_audio voxtral audioflamingo3 wav2vec2
        hubert wavlm wav2vec2-bert wav2vec2-conformer unispeech sew""",
    "dual": """clip siglip siglip2 align altclip chinese_clip clap groupvit clipseg vit dinov2 swin beit deit convnext
        resnet""",
}
"""Families besides language models and models of vision and language, of which all are taken."""

_TABLES = {
    "encoder": ("MASKED_LM",),
    "seq2seq": ("SEQ_TO_SEQ_CAUSAL_LM",),
    "audio": ("SPEECH_SEQ_2_SEQ", "CTC", "SEQ_TO_SEQ_CAUSAL_LM"),
    "dual": ("IMAGE_CLASSIFICATION",),
}
"""The tables of transformers that hold the classes of a group, besides that of bare models."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
_ROPE_BY_KIND = dict.fromkeys(_KINDS, _ROPE)
_FEW_HEADS = {"1": {"num_attention_heads": 2, "num_key_value_heads": 2}}

_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
}

SETTINGS = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "chameleon": {
        "vocabulary_map": {"<image>": 90},
        "vq_config": {"base_channels": 32, "num_embeddings": 96, "embed_dim": 8, "latent_channels": 8},
    },
    "cohere_compass": {"text_config": {"rope_parameters": _ROPE_BY_KIND, "layer_types": _KINDS}},
    "cohere_compass_text": {"rope_parameters": _ROPE_BY_KIND, "layer_types": _KINDS},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]},
    "cosmos3_edge": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}},
    "dots3_note": {"text_config": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": _FEW_HEADS}},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": _FEW_HEADS},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 90, "<image>": 91}},
    "ernie4_5_vl_moe": {"text_config": {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}}},
    "esm": {"vocab_size": 96, "pad_token_id": 1, "mask_token_id": 2},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 4,
        }
    },
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "jamba": {"attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "molmo2": {"adapter_config": {"vision_feature_layer": [2, 1]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "wav2vec2-bert": {"vocab_size": 96},
    "wav2vec2-conformer": {"vocab_size": 96},
    "nemotron": {"num_key_value_heads": 2},
    "resnet": {"hidden_sizes": [8, 16, 24, 32], "embedding_size": 8},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}
"""Settings of families whose small form has to be told, by model type."""


def families():
    """Group and class name by model type, in the order of the table."""
    from transformers.models.auto import modeling_auto as auto

    causal, seeing = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found = {name: ("causal", cls) for name, cls in causal.items()}
    found |= {name: ("vision-language", cls) for name, cls in seeing.items()}
    for group, names in _WANTED.items():
        tables = [getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _TABLES[group]]
        for name in names.split():
            cls = next((table[name] for table in (*tables, auto.MODEL_MAPPING_NAMES) if name in table), None)
            if cls is not None:
                found[name] = (group, cls)
    order = {group: place for place, group in enumerate(GROUPS)}
    return dict(sorted(found.items(), key=lambda entry: (order[entry[1][0]], entry[0])))


def make_config(name):
    """The small configuration of a family."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[name]
    before = SETTINGS.get(name, {})
    try:
        default = cls()
    except Exception:
        default = cls(**before)
    return cls(**small_settings(default, overrides=before))


class TooBigError(Exception):
    """A family whose small form is not small."""


MOST_WEIGHTS = 8_000_000


def make_model(name):
    """The small model of a family, bfloat16, with random weights."""
    import torch
    import transformers

    config, cls = make_config(name), families()[name][1]
    cls = getattr(transformers, cls if isinstance(cls, str) else cls[0])
    with torch.device("meta"):
        hollow = cls(config)
    shapes = {key: tuple(value.shape) for key, value in hollow.state_dict().items()}
    sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
    if sum(sizes.values()) > MOST_WEIGHTS:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
        raise TooBigError(f"{sum(sizes.values()):,} weights: " + ", ".join(f"{key} {shapes[key]}" for key in largest))
    torch.manual_seed(0)
    return cls(config).to(torch.bfloat16)


def make_family(name, root):
    """Save the family's model as `a` and the same with noise as `b`; return both folders."""
    import torch
    from safetensors.torch import load_file, save_file

    a, b = root / "a", root / "b"
    make_model(name).save_pretrained(a)
    shutil.copytree(a, b)
    random = torch.Generator().manual_seed(1)
    for file in b.glob("*.safetensors"):
        noisy = {key: _with_noise(value, random) for key, value in load_file(file).items()}
        save_file(noisy, file, {"format": "pt"})
    return a, b


def _with_noise(value, random):
    if not value.is_floating_point() or not value.numel():
        return value
    scale = 0.1 * value.float().abs().mean() + 1e-3
    return (value.float() + scale * _randn(value.shape, random)).to(value.dtype)


def _randn(shape, random):
    import torch

    return torch.randn(shape, generator=random)


def load(name, folder):
    """What transformers makes of a folder: the model, and what it says about missing and unexpected keys."""
    import transformers

    cls = families()[name][1]
    cls = getattr(transformers, cls if isinstance(cls, str) else cls[0])
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    told = {key: sorted(map(str, value)) for key, value in report.items() if value}
    return model, told
