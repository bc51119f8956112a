from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_families import Family, family
from transformers import AutoConfig

from mergekit.errors import IncompatibleModelsError
from mergekit.layout import Layout, edit_config, read_layout
from mergekit.layout.jsontext import without

PARTS = ("attn.weight", "mlp.weight")


def plain(count: int, config: dict[str, Any], prefix: str = "model.layers") -> Layout:
    shapes = {f"{prefix}.{i}.{part}": (8, 8) for i in range(count) for part in PARTS}
    return read_layout({"model.embed_tokens.weight": (97, 8), **shapes}, config)


def restack(config: dict[str, Any], count: int, layers: list[int], module: str = "default") -> dict[str, Any]:
    layout = plain(count, config)
    text = edit_config(json.dumps(config), donor=layout, stacked={module: [(config, layout, i) for i in layers]})
    return json.loads(text)  # type: ignore[no-any-return]


def of_family(built: Family, module: str, layers: list[int]) -> tuple[str, Layout]:
    layout = read_layout(built.shapes, built.config)
    stacked = {module: [(built.config, layout, i) for i in layers]}
    return edit_config(built.text, donor=layout, stacked=stacked), layout


def dig(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize(
    ("name", "module", "layers"),
    [
        ("llama", "default", [0, 1, 2, 1, 2, 3]),
        ("qwen2", "default", [0, 1, 1, 2, 3]),
        ("qwen3", "default", [0, 3]),
        ("gemma2", "default", [1, 0, 2, 3, 3]),
        ("lfm2", "default", [1, 1, 0]),
        ("modernbert", "default", [3, 0, 0, 0, 1]),
        ("gpt2", "default", [0, 0, 1, 2]),
        ("bloom", "default", [0, 1, 0]),
        ("mamba", "default", [1, 1, 1]),
        ("qwen3_moe", "default", [1, 0, 1]),
        ("deepseek_v3", "default", [0, 1, 1, 2, 3]),
        ("t5", "decoder", [0, 1, 2, 2]),
        ("t5", "encoder", [0]),
        ("whisper", "encoder", [0, 1, 1]),
        ("whisper", "decoder", [0, 2]),
        ("gemma3", "text_decoder", [0, 1, 2, 3, 3]),
        ("qwen3_vl", "text_decoder", [0, 1]),
    ],
)
def test_restacked_config_loads_with_as_many_layers(name: str, module: str, layers: list[int]) -> None:
    text, layout = of_family(family(name), module, layers)
    edited = json.loads(text)
    found = layout.module(module)
    assert found is not None
    assert found.stack is not None
    assert found.stack.count_key is not None
    assert dig(edited, found.stack.count_key) == len(layers)
    loaded = AutoConfig.for_model(**edited)
    part = dig(loaded.to_dict(), found.stack.config_path) if found.stack.config_path else loaded.to_dict()
    assert part[found.stack.count_key.rpartition(".")[2]] == len(layers)
    source = dig(family(name).config, found.stack.config_path) if found.stack.config_path else family(name).config
    if source.get("layer_types"):
        assert part["layer_types"] == [source["layer_types"][i] for i in layers]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "lfm2", "deepseek_v3", "gpt2", "whisper", "gemma3"])
def test_the_same_layers_change_no_byte(name: str) -> None:
    built = family(name)
    layout = read_layout(built.shapes, built.config)
    for module in layout.modules:
        if module.stack:
            text, _ = of_family(built, module.name, list(range(module.stack.count)))
            assert text == built.text


def test_only_what_must_change_changes() -> None:
    text = (
        '{\n\t"num_hidden_layers" : 2,\n\t"rms_norm_eps": 1e-6, "big": 1E4,\n'
        '\t"layer_types": [\n\t\t"a",\n\t\t"b"\n\t],'
        '\n\t"name": "caf\\u00e9 é",\n\t"torch_dtype":"float32"}\n\n'
    )
    config = json.loads(text)
    layout = plain(2, config)
    stacked = {"default": [(config, layout, i) for i in (1, 1, 0)]}
    edited = edit_config(text, donor=layout, stacked=stacked, dtype="bfloat16")
    assert edited == text.replace(": 2", ": 3").replace('"float32"', '"bfloat16"').replace(
        '[\n\t\t"a",\n\t\t"b"\n\t]', '[\n\t\t"b",\n\t\t"b",\n\t\t"a"\n\t]'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', '{"a": 1, "torch_dtype": "float16", "vocab_size": 98}'),
        ('{\n  "a": 1\n}\n', '{\n  "a": 1,\n  "torch_dtype": "float16",\n  "vocab_size": 98\n}\n'),
        ("{}", '{"torch_dtype": "float16", "vocab_size": 98}'),
    ],
)
def test_new_entries_come_last_in_the_style_of_the_others(text: str, expected: str) -> None:
    assert edit_config(text, donor=plain(2, json.loads(text)), dtype="float16", vocab_size=98) == expected


CONFIG: dict[str, Any] = {"num_hidden_layers": 4, "vocab_size": 97}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["d", "b", "b"]),
        ("mlp_layer_types", ["a", "b", "c", "d"], ["d", "b", "b"]),
        ("no_rope_layers", [0, 1, 1, 0], [0, 1, 1]),
        ("num_key_value_heads", [1, 2, 3, 4], [4, 2, 2]),
        ("block_configs", [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}], [{"n": 3}, {"n": 1}, {"n": 1}]),
        ("moe_layer_freq", [0, 1, 1, 0], [0, 1, 1]),
        ("hybrid_override_pattern", "M-*E", "E--"),
        ("mlp_only_layers", [1], [1, 2]),
        ("mlp_only_layers", [], []),
        ("full_attn_idxs", [0, 3], [0]),
        ("attn_layer_indices", [0], []),
        ("moe_layers", [0, 1, 2, 3], [0, 1, 2]),
        ("first_k_dense_replace", 0, 0),
        ("first_k_dense_replace", 4, 4),
        ("eos_token_id", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("architectures", ["A", "B", "C", "D"], ["A", "B", "C", "D"]),
        ("mrope_section", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("image_mean", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("encoder_layer_types", ["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        ("max_window_layers", 28, 28),
    ],
)
def test_entries_about_layers_follow_them(key: str, value: object, expected: object) -> None:
    edited = restack({**CONFIG, key: value}, 4, [3, 1, 1])
    assert edited == {**CONFIG, key: expected, "num_hidden_layers": 3}


@pytest.mark.parametrize(("layers", "expected"), [([0, 1, 1, 2], 3), ([2, 3], 0), ([0, 1], 2)])
def test_a_leading_count_is_counted_anew(layers: list[int], expected: int) -> None:
    config = {**CONFIG, "first_k_dense_replace": 2}
    assert restack(config, 4, layers)["first_k_dense_replace"] == expected


def test_numbers_that_stand_for_parts_elsewhere_cannot_become_fewer() -> None:
    config = {"num_hidden_layers": 4, "deepstack_visual_indexes": [1, 3]}
    layout = plain(4, config, prefix="visual.blocks")

    def edited(layers: list[int]) -> Any:
        return json.loads(
            edit_config(json.dumps(config), donor=layout, stacked={"default": [(config, layout, i) for i in layers]})
        )

    assert edited([1, 2, 0, 3])["deepstack_visual_indexes"] == [0, 3]
    with pytest.raises(IncompatibleModelsError, match="deepstack_visual_indexes"):
        edited([0, 1, 2])


def test_a_broken_leading_count_is_an_error_that_names_the_layers() -> None:
    with pytest.raises(IncompatibleModelsError, match=r"first_k_dense_replace: 2.*output layers 0, 1, 3, 4"):
        restack({**CONFIG, "first_k_dense_replace": 2}, 4, [0, 1, 2, 0, 1])


def test_a_trailing_count_is_counted_from_the_end() -> None:
    config = {**CONFIG, "num_kv_shared_layers": 2}
    assert restack(config, 4, [0, 1, 2])["num_kv_shared_layers"] == 1
    with pytest.raises(IncompatibleModelsError, match="num_kv_shared_layers"):
        restack(config, 4, [3, 0])


@pytest.mark.parametrize(
    ("settings", "fits", "breaks"),
    [
        ({"full_attention_interval": 2}, [0, 1, 0, 3], [1, 0]),
        ({"sliding_window_pattern": 2}, [2, 1], [1, 2]),
        ({"attn_layer_period": 4, "attn_layer_offset": 1}, [3, 1, 2], [1, 1]),
        ({"decoder_sparse_step": 2}, [0, 3], [3, 0]),
        ({"moe_layer_freq": 2}, [2, 1, 0], [1, 0]),
    ],
)
def test_periods_must_still_fit(settings: dict[str, Any], fits: list[int], breaks: list[int]) -> None:
    assert restack({**CONFIG, **settings}, 4, fits) == {**CONFIG, **settings, "num_hidden_layers": len(fits)}
    with pytest.raises(IncompatibleModelsError, match=next(iter(settings))):
        restack({**CONFIG, **settings}, 4, breaks)


@pytest.mark.parametrize(("layers", "expected"), [([0, 1, 2], "LG"), ([1, 0, 0], "GLL")])
def test_a_repeating_string_is_spelled_out_when_it_no_longer_repeats(layers: list[int], expected: str) -> None:
    assert restack({**CONFIG, "sliding_window_pattern": "LG"}, 4, layers)["sliding_window_pattern"] == expected


def test_a_period_is_not_read_beside_an_explicit_list() -> None:
    config = {**CONFIG, "full_attention_interval": 2, "layer_types": ["l", "f", "l", "f"]}
    assert restack(config, 4, [1, 0])["layer_types"] == ["f", "l"]


@pytest.mark.parametrize(
    ("settings", "layers", "expected"),
    [
        ({"model_type": "gemma2"}, [0, 1, 2], None),
        ({"model_type": "gemma2"}, [1, 2], ["full_attention", "sliding_attention"]),
        ({"model_type": "cohere2", "sliding_window_pattern": 2}, [3], ["full_attention"]),
        ({"model_type": "llama"}, [1, 2], None),
    ],
)
def test_layer_kinds_that_loaders_work_out_are_written_where_they_would_err(
    settings: dict[str, Any], layers: list[int], expected: list[str] | None
) -> None:
    assert restack({**CONFIG, **settings}, 4, layers).get("layer_types") == expected


def test_entries_behind_the_last_layer_stay() -> None:
    config = {**CONFIG, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "c", "d", "mtp"]}
    edited = restack(config, 5, [3, 0])
    assert edited == {**config, "num_hidden_layers": 2, "layer_types": ["d", "a", "mtp"]}


def test_each_layer_brings_its_own_models_entry() -> None:
    donor = {**CONFIG, "layer_types": ["a", "b", "c", "d"], "first_k_dense_replace": 1}
    other = {"num_hidden_layers": 2, "layer_types": ["x", "y"], "first_k_dense_replace": 2}
    silent = {"num_hidden_layers": 4}
    layouts = plain(4, donor), plain(2, other), plain(4, silent)
    stacked = [(other, layouts[1], 1), (donor, layouts[0], 0), (silent, layouts[2], 3)]
    edited = json.loads(edit_config(json.dumps(donor), donor=layouts[0], stacked={"default": stacked}))
    assert edited["layer_types"] == ["y", "a", "d"]
    assert edited["first_k_dense_replace"] == 2


def test_a_layer_that_no_config_describes_is_an_error() -> None:
    donor = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    tall: dict[str, Any] = {"num_hidden_layers": 4}
    stacked = {"default": [(tall, plain(4, tall), 3)]}
    with pytest.raises(IncompatibleModelsError, match="no value for layer 3"):
        edit_config(json.dumps(donor), donor=plain(2, donor), stacked=stacked)


def test_a_layer_beyond_the_last_is_an_error() -> None:
    with pytest.raises(IncompatibleModelsError, match="layer 4 of module `default`"):
        restack(CONFIG, 4, [4])


def test_a_module_without_layers_cannot_be_stacked() -> None:
    with pytest.raises(IncompatibleModelsError, match="`vision_tower` has no layers"):
        restack(CONFIG, 4, [0], module="vision_tower")


def test_a_count_that_nothing_holds_cannot_be_set() -> None:
    with pytest.raises(IncompatibleModelsError, match="does not say"):
        restack({"num_hidden_layers": 12}, 4, [0, 1])
    assert restack({"num_hidden_layers": 12}, 4, [3, 2, 1, 0]) == {"num_hidden_layers": 12}


def test_all_entries_that_count_one_stack_are_set() -> None:
    config = {"n_layer": 4, "num_hidden_layers": 4, "max_window_layers": 4, "num_attention_heads": 4}
    assert restack(config, 4, [0]) == {**config, "n_layer": 1, "num_hidden_layers": 1}


def test_equal_counts_of_encoder_and_decoder_are_kept_apart() -> None:
    config = {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}
    shapes = {
        f"model.{side}.layers.{i}.{part}": (8, 8) for side in ("encoder", "decoder") for i in (0, 1) for part in PARTS
    }
    layout = read_layout(shapes, config)
    for module, changed in (
        ("decoder", {"decoder_layers": 1}),
        ("encoder", {"encoder_layers": 1, "num_hidden_layers": 1}),
    ):
        text = edit_config(json.dumps(config), donor=layout, stacked={module: [(config, layout, 0)]})
        assert json.loads(text) == {**config, **changed}


@pytest.mark.parametrize(
    ("heights", "module", "key", "expected"),
    [
        ((4, 4), "decoder", "attention_window", [2, 4, 6, 8]),
        ((4, 4), "encoder", "attention_window", [8, 2, 2]),
        ((4, 4), "decoder", "decoder_layer_window", [8, 2, 2]),
        ((6, 4), "decoder", "attention_window", [8, 2, 2]),
        ((6, 4), "encoder", "attention_window", [2, 4, 6, 8]),
    ],
)
def test_a_list_for_either_stack_is_the_encoders(
    heights: tuple[int, int], module: str, key: str, expected: list[int]
) -> None:
    encoder, decoder = heights
    config = {"encoder_layers": encoder, "decoder_layers": decoder, key: [2, 4, 6, 8]}
    shapes = {
        f"model.{side}.layers.{i}.{part}": (8, 8)
        for side, count in (("encoder", encoder), ("decoder", decoder))
        for i in range(count)
        for part in PARTS
    }
    layout = read_layout(shapes, config)
    layers = [(config, layout, layer) for layer in (3, 0, 0)]
    text = edit_config(json.dumps(config), donor=layout, stacked={module: layers})
    assert json.loads(text) == {**config, key: expected, f"{module}_layers": 3}


def test_one_count_cannot_hold_two_heights() -> None:
    config = {"num_layers": 2}
    shapes = {f"{side}.block.{i}.{part}": (8, 8) for side in ("encoder", "decoder") for i in (0, 1) for part in PARTS}
    layout = read_layout(shapes, config)
    layers = [(config, layout, 0)]
    with pytest.raises(IncompatibleModelsError, match="counts the layers of several modules"):
        edit_config(json.dumps(config), donor=layout, stacked={"decoder": layers})
    both = edit_config(json.dumps(config), donor=layout, stacked={"decoder": layers, "encoder": layers})
    assert json.loads(both) == {"num_layers": 1}


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.data())
def test_lists_are_the_sources_entries_in_order(layers: list[int], draw: st.DataObject) -> None:
    kinds = draw.draw(st.lists(st.sampled_from("abc"), min_size=9, max_size=9))
    listed = draw.draw(st.sets(st.integers(0, 8)))
    config = {"num_hidden_layers": 9, "layer_types": kinds, "mlp_only_layers": sorted(listed), "sizes": list(range(9))}
    edited = restack(config, 9, layers)
    assert edited["layer_types"] == [kinds[i] for i in layers]
    assert edited["mlp_only_layers"] == [out for out, i in enumerate(layers) if i in listed]
    assert edited["sizes"] == layers
    assert edited["num_hidden_layers"] == len(layers)


@pytest.mark.parametrize(
    ("config", "dtype", "changed"),
    [
        ({"dtype": "float32"}, "bfloat16", {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, "bfloat16", {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float32", "dtype": "float32"}, "float16", {"torch_dtype": "float16", "dtype": "float16"}),
        ({"dtype": None}, "float16", {"dtype": "float16"}),
        ({}, "float16", {"torch_dtype": "float16"}),
        ({"torch_dtype": "torch.float16"}, "float16", {}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32"}, "vision_config": {"dtype": None}},
            "bfloat16",
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}},
        ),
        (
            {"dtype": "float32", "quantization_config": {"dtype": "int8"}},
            "bfloat16",
            {"dtype": "bfloat16"},
        ),
    ],
)
def test_dtype_is_set_where_it_stands(config: dict[str, Any], dtype: str, changed: dict[str, Any]) -> None:
    text = json.dumps(config)
    edited = edit_config(text, donor=plain(2, config), dtype=dtype)
    assert json.loads(edited) == {**config, **changed}
    assert (edited == text) == (not changed)


@pytest.mark.parametrize(
    ("config", "tied", "changed"),
    [
        ({"tie_word_embeddings": True}, False, {"tie_word_embeddings": False}),
        ({"tie_word_embeddings": True}, True, {}),
        ({"text_config": {"tie_word_embeddings": True}}, False, {"text_config": {"tie_word_embeddings": False}}),
        (
            {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
            False,
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}},
        ),
        ({"vision_config": {"tie_word_embeddings": True}}, True, {}),
        ({}, True, {}),
        ({}, False, {"tie_word_embeddings": False}),
    ],
)
def test_tie_is_set_where_it_stands(config: dict[str, Any], tied: bool, changed: dict[str, Any]) -> None:
    text = json.dumps(config)
    edited = edit_config(text, donor=plain(2, config), tied=tied)
    assert json.loads(edited) == {**config, **changed}
    assert (edited == text) == (not changed)


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"vocab_size": 97}, {"vocab_size": 99}),
        ({"text_config": {"vocab_size": 97}}, {"text_config": {"vocab_size": 99}}),
        (
            {"vocab_size": 97, "text_config": {"vocab_size": 97}, "audio_config": {"vocab_size": 97}},
            {"vocab_size": 99, "text_config": {"vocab_size": 99}},
        ),
        ({"vocab_size": 97, "text_config": {"vocab_size": 5}}, {"vocab_size": 99}),
        ({"text_config": {"num_hidden_layers": 2}}, {"text_config": {"num_hidden_layers": 2, "vocab_size": 99}}),
    ],
)
def test_vocabulary_size_is_set_where_it_stands(config: dict[str, Any], changed: dict[str, Any]) -> None:
    edited = edit_config(json.dumps(config), donor=plain(2, config), vocab_size=99)
    assert json.loads(edited) == {**config, **changed}


KEYS = st.text(alphabet='ab,:{"', min_size=1, max_size=3)
OBJECTS = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(alphabet=',"}', max_size=2) | st.lists(st.integers(0, 3), max_size=2),
    lambda values: st.dictionaries(KEYS, values, max_size=4),
    max_leaves=12,
)


@given(
    content=st.dictionaries(KEYS, OBJECTS, min_size=1, max_size=4),
    indent=st.sampled_from([None, 2, "\t"]),
    data=st.data(),
)
def test_without_an_entry_the_text_is_as_if_it_had_never_been_there(content: Any, indent: Any, data: Any) -> None:
    gone = data.draw(st.lists(st.sampled_from(list(content)), unique=True, max_size=len(content) - 1))
    rest = {key: value for key, value in content.items() if key not in gone}
    assert without(json.dumps(content, indent=indent), [(key,) for key in gone]) == json.dumps(rest, indent=indent)
    inner = json.dumps({"a": 1, "b": content}, indent=indent)
    assert without(inner, [("b", key) for key in gone]) == json.dumps({"a": 1, "b": rest}, indent=indent)
    assert json.loads(without(inner, [("a",), *(("b", key) for key in content)])) == {"b": {}}


@pytest.mark.parametrize("place", [(), ("text_config",)])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_what_is_said_about_quantisation_goes(place: tuple[str, ...], key: str) -> None:
    plainly: dict[str, Any] = {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}}
    config = json.loads(json.dumps(plainly))
    (config["text_config"] if place else config)[key] = {"quant_method": "fp8", "dtype": "float8", "x": {"y": [1]}}
    text = json.dumps(config, indent=2)
    assert edit_config(text, donor=plain(2, config)) == text
    edited = edit_config(text, donor=plain(2, config), dtype="float16", unquantised=True)
    assert edited == json.dumps(plainly, indent=2).replace("bfloat16", "float16")
    assert edit_config(json.dumps(plainly), donor=plain(2, config), unquantised=True) == json.dumps(plainly)
