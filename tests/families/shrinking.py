"""Small settings for any configuration class of transformers, found by looking at the one that it makes by default."""

import dataclasses
import re

LAYERS, TOWER_LAYERS = 4, 3
ROWS, WIDTH, HEADS, HEAD = 96, 32, 4, 8

_SKIPPED = re.compile(r"^(id2label|label2id|architectures|model_type|transformers_version|dtype|torch_dtype|_.*)$")
# The first pattern that fits a key decides what its number becomes: a number, or a function of the old one.
_RULES = [
    (
        r"token_id|_token_index|^(bos|eos|pad|sep|mask|unk|image|video|audio)_(id|index)$",
        lambda old: min(old, ROWS - 1),
    ),
    (r"vocab_offset", lambda old: min(old, ROWS)),
    (r"(^|_)vocab_size|^vocab_size|num_embeddings|^n_symbols$", lambda old: min(old, ROWS)),
    (r"kv_shared_layers|nextn|num_mtp|dense_replace|n?_dense_layers|hash_layers", lambda old: min(old, 1)),
    (r"num_feat_extract_layers|n_layers_per|conv_layers|per_layer$|resampler_depth|perceiver.*layers", lambda old: old),
    (r"^(num_)?(hidden_|encoder_|decoder_)?layers$|^n_?layers?$|_layers$|^depth$|^num_blocks$", LAYERS),
    (r"_layer_period|every_n|_interval$|_step$|_pattern$|_frequency$", lambda old: min(old, 2)),
    (r"^(num_experts|n_routed_experts|num_local_experts|moe_num_experts|ffn_num_experts)$", 4),
    (r"experts_per_tok|moe_k$|moe_topk|top_?k_experts|moe_top_k", lambda old: min(old, 2)),
    (r"n_group$|topk_group|expert_group|n_groups$|num_groups|_ngroups", 1),
    (r"shared_experts?$|zero_expert", lambda old: min(old, 1)),
    (r"mamba_(n|num)_heads$|^mamba_expand_heads$", 8),
    (r"(key_value|kv|_key)_heads$|_heads_kv$|index_n_heads|num_kv_heads", lambda old: min(old, 2)),
    (r"heads$|n_head$|_n_heads$|^num_heads$", lambda old: min(old, HEADS)),
    (r"(?<!num_)(?<!per_)head_?dim|_head_dim|^d_kv$|kv_channels|rotary_dim|d_head$", HEAD),
    (r"lora_rank|_rank$|time_step_rank", lambda old: min(old, HEAD)),
    (r"^patch_size$|_patch_size$", lambda old: min(old, 8)),
    (r"image_size$|^input_size$", lambda old: 32 if old >= 32 else old),
    (r"position|n_ctx|max_seq|seq_len|sequence_length|max_length", lambda old: min(old, 64)),
    (r"intermediate_size|ffn|inner|d_ff|mlp_dim|mlp_hidden", lambda old: min(old, 48)),
    (r"window", lambda old: min(old, 16)),
    (r"_size$|d_model|n_embd|dim$|hidden|channels$|width$", lambda old: min(old, WIDTH)),
    (r"", lambda old: 32 if old > 128 else old),
]
_RULES = [(re.compile(pattern), rule) for pattern, rule in _RULES]


def small_settings(config, *, overrides=None, layers=LAYERS):
    """Return arguments for `type(config)` that make a small model of the same kind.

    Parameters:
        config: an instance with default settings.
        overrides: settings by key, nested ones as mappings; they win.
        layers: how many layers the outermost stack gets.
    """
    overrides = dict(overrides or {})
    settings = {}
    for key, value in _given(config).items():
        if _SKIPPED.match(key):
            continue
        own = overrides.pop(key, None)
        if own is not None and not (isinstance(own, dict) and hasattr(value, "to_dict")):
            settings[key] = own
        elif hasattr(value, "to_dict"):
            deep = LAYERS if _is_text(key, value) else TOWER_LAYERS
            settings[key] = {"model_type": value.model_type, **small_settings(value, overrides=own, layers=deep)}
        elif (small := _small(key, value, config, layers)) is not value:
            settings[key] = small
    return {**settings, **overrides}


def _is_text(key, value):
    return key in (
        "text_config",
        "decoder",
        "encoder",
        "text_encoder",
        "thinker_config",
        "llm_config",
        "qformer_config",
    )


def _given(config):
    """The settings that the class takes, as the default instance holds them."""
    names = {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    held = {key: value for key, value in vars(config).items() if key in names or not names}
    nested = {key: value for key in type(config).sub_configs if (value := getattr(config, key, None)) is not None}
    return {**held, **nested}


def _small(key, value, config, layers):
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        rule = next(rule for pattern, rule in _RULES if pattern.search(key))
        if rule == LAYERS and not callable(rule):
            return layers
        return rule(value) if callable(rule) else min(rule, value) if value > 0 else value
    if isinstance(value, (list, tuple)):
        return _small_list(key, list(value), config, layers)
    return value


def _small_list(key, value, config, layers):
    """Lists with an entry per layer get all kinds of entries in turn; lists of layer numbers stay in the stack."""
    if not value:
        return value
    if isinstance(value[0], str) and re.search(r"layer|types|pattern|block", key):
        kinds = list(dict.fromkeys(value))
        return _spread(value, kinds, layers)
    if _numbers_layers(key, value):
        return sorted({min(item, layers - 1) for item in value})
    height = next((got for name in _HEIGHTS if isinstance(got := getattr(config, name, None), int)), 0)
    if len(value) == height and height > 1 and not isinstance(value[0], (list, dict)):
        return _spread(value, list(dict.fromkeys(value)), layers)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value) and max(value) > 64:
        return [min(item, WIDTH) for item in value]
    return value


_HEIGHTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth", "encoder_layers")


def _numbers_layers(key, value):
    rising = all(type(item) is int for item in value) and value == sorted(set(value))
    return rising and bool(re.search(r"layer|block|attn|index|idx", key)) and key.endswith(("s", "ids"))


def _spread(value, kinds, layers):
    """A list of the new height that begins and ends as the old one and holds all kinds, if there is room."""
    if len(kinds) > layers:
        kinds = kinds[:layers]
    middle = [kind for kind in kinds if kind not in (value[0], value[-1])]
    rest = layers - 2 - len(middle)
    inner = [*middle, *value[1 : 1 + max(rest, 0)]][: layers - 2]
    return [value[0], *inner, value[-1]]
