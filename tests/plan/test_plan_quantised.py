"""Quantised weights are read as their libraries read them, whatever stretch is asked for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_quantised import EDGE, FORMATS, compressed, fp8_block, settings_of

from mergekit.checkpoint import Extent, Files, TensorSpec, open_pickle, read_header
from mergekit.checkpoint.quantised import codes, group_tensors, read_settings
from mergekit.errors import CheckpointError, MissingTensorError, UnsupportedError
from mergekit.plan.views import Dequantised, Joined, Pieces, fuse_experts


class Reading:
    """Reads from files, and refuses whatever a view did not announce."""

    def __init__(self, announced=None):
        self.files, self.announced = Files(), announced

    def read(self, extent, into):
        inside = self.announced is None or any(
            extent.file == told.file and told.start <= extent.start and extent.stop <= told.stop
            for told in self.announced
        )
        assert inside, extent
        self.files.read(extent, into)

    def buffer(self, use, nbytes):
        return np.full(nbytes, 0xA5, np.uint8)


def entries(view, start=0, stop=None):
    stop = view.spec.count if stop is None else stop
    access = Reading(list(view.extents(start, stop)))
    into = np.full(stop - start, np.float32(77))
    view.read(access, start, stop, into)
    access.files.close()
    return into


def grouped(folder, tensors, config=None):
    file = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file(tensors, file)
    stored = {one.spec.name: one for one in read_header(file).tensors}
    return group_tensors(stored, read_settings(config or {}))


def weight_view(folder, tensors, config=None):
    (weight,) = grouped(folder, tensors, config).weights.values()
    return Dequantised.of(weight)


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 8


def microscaled(experts, outputs, blocks, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "experts.down_proj_blocks": torch.randint(0, 256, (experts, outputs, blocks, 16), generator=random).byte(),
        "experts.down_proj_scales": torch.randint(97, 150, (experts, outputs, blocks), generator=random).byte(),
    }


def microscaled_dense(parts):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(*parts.values(), dtype=torch.float32)


# The same numbers as the libraries'


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(48, 32), (32, 80), (9, 64)])
def test_weights_are_what_their_library_reads(form, shape, tmp_path):
    parts, dense = FORMATS[form][0]("a.q_proj.weight", matrix(*shape))
    view = weight_view(tmp_path, parts, settings_of(form))
    assert view.spec == TensorSpec("a.q_proj.weight", view.spec.dtype, shape)
    assert (view.spec.dtype.name, view.row_format) == ("BF16", "F32")
    assert {name for name in parts if "input_scale" not in name} == set(view.names)
    np.testing.assert_array_equal(entries(view), dense.reshape(-1).numpy())


@pytest.mark.parametrize("form", ["nf4_nested", "fp4_nested"])
def test_the_last_block_may_be_shorter(form, tmp_path):
    parts, dense = FORMATS[form][0]("w.weight", matrix(7, 65))
    np.testing.assert_array_equal(entries(weight_view(tmp_path, parts)), dense.reshape(-1).numpy())


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 40, 5), (2, 64, 2)])
def test_microscaled_experts_are_what_transformers_reads(sizes, tmp_path):
    parts = microscaled(*sizes)
    view = weight_view(tmp_path, parts, {"quantization_config": {"quant_method": "mxfp4"}})
    dense = microscaled_dense(parts)
    assert (view.spec.name, view.spec.shape) == ("experts.down_proj", tuple(dense.shape))
    np.testing.assert_array_equal(entries(view), dense.reshape(-1).numpy())


def test_scales_of_few_bits_give_what_the_library_rounds(tmp_path):
    make = compressed("pack-quantized", 4, group=16, dtype=torch.bfloat16)
    parts, dense = make("w.weight", matrix(12, 64).bfloat16())
    found = torch.from_numpy(entries(weight_view(tmp_path, parts)))
    assert dense.dtype == torch.bfloat16
    assert torch.equal(found.bfloat16(), dense.reshape(-1))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_all_codes_of_eight_bits(dtype, tmp_path):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    view = weight_view(tmp_path, {"norm.weight": codes})
    found, expected = entries(view), codes.float().numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found)[found == 0], np.signbit(expected)[found == 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_dtypes_of_scales(dtype, tmp_path):
    parts, _ = fp8_block("w.weight", matrix(40, 40))
    scales = parts["w.weight_scale_inv"]
    powers = torch.randint(110, 130, scales.shape, dtype=torch.uint8)
    parts["w.weight_scale_inv"] = powers if dtype == torch.uint8 else scales.to(dtype)
    wide = torch.exp2(powers.float() - 127) if dtype == torch.uint8 else scales.to(dtype).float()
    spread = wide.repeat_interleave(EDGE, 0)[:40].repeat_interleave(EDGE, 1)[:, :40]
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [EDGE, EDGE]}}
    view = weight_view(tmp_path, parts, config)
    np.testing.assert_array_equal(entries(view), (parts["w.weight"].float() * spread).reshape(-1).numpy())


def test_scales_of_experts_in_one_tensor(tmp_path):
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 8, 12, generator=random).to(torch.float8_e4m3fn)
    for scales in (torch.rand(3, 2, 3, generator=random), torch.rand(3, 8, 1), torch.rand(3, 1, 1), torch.rand(3)):
        parts = {"experts.up_proj": codes, "experts.up_proj_scale_inv": scales}
        spread = scales.reshape(3, *(scales.shape[1:] or (1, 1)))
        spread = spread.repeat_interleave(8 // spread.shape[1], 1).repeat_interleave(12 // spread.shape[2], 2)
        found = entries(weight_view(tmp_path, parts))
        np.testing.assert_array_equal(found, (codes.float() * spread).reshape(-1).numpy())


# Any stretch


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Views of every format, and all their entries."""
    folder = tmp_path_factory.mktemp("examples")
    views = [weight_view(folder, microscaled(3, 10, 2))]
    for form, (make, _) in FORMATS.items():
        parts, _ = make("w.weight", matrix(18, 48))
        views.append(weight_view(folder, parts, settings_of(form)))
    whole = [entries(view) for view in views]
    return lambda which: (views[which], whole[which])


@settings(deadline=None)
@given(
    which=st.integers(0, len(FORMATS)),
    cut=st.tuples(st.integers(0, 2000), st.integers(0, 2000)),
    window=st.integers(8, 4000),
)
def test_a_stretch_is_the_same_as_in_the_whole(examples, which, cut, window):
    view, whole = examples(which)
    start, stop = sorted(min(edge, view.spec.count) for edge in cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "_WINDOW", window)
        found = entries(view, start, stop)
    assert found.tobytes() == whole[start:stop].tobytes()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    seed=st.integers(0, 9),
)
def test_blocks_of_any_size_on_matrices_of_any_shape(tmp_path_factory, shape, block, seed):
    grid = [-(-size // edge) for size, edge in zip(shape, block, strict=True)]
    parts = {
        "w": matrix(*shape, seed).to(torch.float8_e4m3fn),
        "w_scale_inv": torch.rand(grid, generator=torch.Generator().manual_seed(seed)),
    }
    spread = parts["w_scale_inv"].repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(block)}}
    view = weight_view(tmp_path_factory.mktemp("blocks"), parts, config)
    expected = parts["w"].float() * spread[:, : shape[1]]
    np.testing.assert_array_equal(entries(view), expected.reshape(-1).numpy())


def test_room_is_bounded_where_neighbours_lie_far_apart(tmp_path):
    """One row of a transposed matrix has its codes all over the file."""
    view = weight_view(tmp_path, microscaled(1, 3000, 90))
    rooms = []

    class Counting(Reading):
        def buffer(self, use, nbytes):
            rooms.append(nbytes)
            return super().buffer(use, nbytes)

    view.read(Counting(), 3000, 6000, np.empty(3000, np.float32))
    assert len(rooms) > 1
    assert max(rooms) <= view.kept_bytes / 4
    assert sum(rooms) <= view.nbytes


def test_experts_of_which_some_are_quantised_are_one_tensor(tmp_path):
    layer, expected = {}, []
    for expert in range(2):
        for kind in ("gate", "up"):
            name = f"mlp.experts.{expert}.{kind}_proj.weight"
            weight = matrix(8, 32, len(layer))
            parts, dense = fp8_block(name, weight)
            if expert:
                parts, dense = {name: weight.bfloat16()}, weight.bfloat16().float()
            found = grouped(tmp_path, parts)
            layer[name] = Dequantised.of(found.weights[name]) if found.weights else Pieces.of(found.plain[name])
            expected.append(dense.numpy().reshape(-1))
    (view,) = fuse_experts(layer).values()
    assert isinstance(view, Joined)
    assert view.spec.shape == (2, 16, 32)
    assert view.nbytes == sum(one.nbytes for one in layer.values())
    whole = np.concatenate(expected)
    for start, stop in ((0, 1024), (100, 300), (255, 257), (700, 1000), (512, 512)):
        np.testing.assert_array_equal(entries(view, start, stop), whole[start:stop])


# What goes together


def test_tensors_about_activations_are_no_weights(tmp_path):
    parts = {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(())}
    others = {"a.input_scale": torch.ones(()), "attn.k_scale": torch.ones(()), "logit_scale": torch.ones(())}
    found = grouped(tmp_path, parts | others, {"quantization_config": {"quant_method": "modelopt"}})
    assert set(found.activations) == {"a.input_scale", "attn.k_scale"}
    assert list(found.plain) == ["logit_scale"]


def test_models_without_quantisation_stay_as_they_are(tmp_path):
    """Names that formats use, on tensors that are no codes."""
    tensors = {
        "a.weight": torch.zeros(4, 4),
        "a.weight_scale": torch.zeros(4, 1),
        "a.input_scale": torch.zeros(1),
        "down_blocks": torch.zeros(2),
        "position_ids": torch.zeros(1, 8, dtype=torch.int64),
        "mask": torch.zeros(1, 8, dtype=torch.bool),
    }
    found = grouped(tmp_path, tensors)
    assert not found.weights
    assert not found.activations
    assert set(found.plain) == set(tensors)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "BF16"),
        ({"torch_dtype": "float16"}, "F16"),
        ({"dtype": "torch.float32"}, "F32"),
        ({"torch_dtype": "float8_e4m3fn"}, "BF16"),
        ({"text_config": {"dtype": "float16"}}, "F16"),
        ({"dtype": "auto", "torch_dtype": None}, "BF16"),
        ({"quantization_config": {"dtype": "float16"}}, "BF16"),
    ],
)
def test_the_dtype_without_quantisation_is_that_of_the_config(config, expected):
    assert read_settings(config).dtype.name == expected


# What is refused


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "exl2"}, "exl2"),
        ({"bits": 4}, "unknown"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors, marlin-24"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"format": "nvfp4-pack-quantized"}}}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": 1}}}, "rotated"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_other_ways_of_quantising_are_refused_by_name(section, named, nested, tmp_path):
    config = {"quantization_config": section}
    with pytest.raises(UnsupportedError, match=f"is quantised \\(.*{named}"):
        grouped(tmp_path, {"w": torch.zeros(2, 2)}, {"text_config": config} if nested else config)


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("a.qweight", torch.zeros(2, 2, dtype=torch.int32), "GPTQ or AWQ"),
        ("a.W_q", torch.zeros(2, 2, dtype=torch.uint8), "HQQ"),
        ("a.q_weight", torch.zeros(2, 2, dtype=torch.int32), "EXL2"),
        ("a.weight_scale_2", torch.zeros(()), "NVFP4"),
    ],
)
def test_formats_are_refused_by_their_tensors_too(name, tensor, named, tmp_path):
    with pytest.raises(UnsupportedError, match=rf"`{name}` is quantised \({named}\)"):
        grouped(tmp_path, {name: tensor})


def test_codes_that_nobody_recognises_are_not_numbers(tmp_path):
    tensors = {"a.weight": torch.zeros(4, 2, dtype=torch.uint8), "a.weight_scale": torch.zeros(4, 1)}
    with pytest.raises(UnsupportedError, match=r"`a\.weight` holds uint8 in a model that is quantised \(modelopt\)"):
        grouped(tmp_path, tensors, {"quantization_config": {"quant_method": "modelopt"}})


def test_pairs_of_numbers_in_bytes_are_not_taken_for_one(tmp_path):
    """FP4 experts beside FP8 weights come as int8, two numbers in a byte."""
    tensors = {"a.weight": torch.zeros(4, 16, dtype=torch.int8), "a.weight_scale_inv": torch.ones(4, 1)}
    with pytest.raises(UnsupportedError, match="holds int8"):
        grouped(tmp_path, tensors, {"quantization_config": {"quant_method": "fp8"}})


def test_matrices_that_the_library_turns_round_are_refused(tmp_path):
    config = {"model_type": "gpt2", "quantization_config": {"load_in_4bit": True}}
    with pytest.raises(UnsupportedError, match="turns the matrices of gpt2 round"):
        grouped(tmp_path, {"w": torch.zeros(2, 2)}, config)


def test_lists_of_indices_are_no_codes(tmp_path):
    found = grouped(tmp_path, {"position_ids": torch.zeros(1, 8, dtype=torch.int64)}, settings_of("nf4"))
    assert list(found.plain) == ["position_ids"]


def changed(form, **changes):
    """The parts of a weight but for some: a function of the tensor, or None to leave it out."""
    parts, _ = FORMATS[form][0]("w.weight", matrix(32, 48))
    for ending, change in changes.items():
        name = next(name for name in parts if name.endswith(ending))
        tensor = parts.pop(name)
        if change is not None:
            parts[name] = change(tensor).contiguous()
    return parts, settings_of(form)


def flat(tensor):
    return tensor.reshape(-1)


def fewer(tensor):
    return tensor[:-1]


def text(content):
    return lambda _: torch.frombuffer(bytearray(content), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("fp8_block", {"_scale_inv": None}),
        ("fp8_tensor", {"_scale": None, "input_scale": None}),
        ("nf4", {"absmax": None}),
        ("nf4_nested", {".quant_map": None}),
        ("int4_group", {"_scale": None}),
        ("int4_group", {"_shape": None}),
    ],
)
def test_a_missing_part_is_named(form, change, tmp_path):
    with pytest.raises(MissingTensorError, match=r"`w\.weight.*` is quantised, and a part") as caught:
        grouped(tmp_path, *changed(form, **change))
    if len(change) == 1:
        assert next(iter(change)).strip("._") in caught.value.problem.expected


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("fp8_block", {"_scale_inv": fewer}),
        ("fp8_block", {"_scale_inv": flat}),
        ("fp8_block", {"_scale_inv": lambda scales: scales.to(torch.int32)}),
        ("fp8_channel", {"_scale": fewer}),
        ("fp8_block", {"weight": lambda codes: codes[:, :9]}),
        ("nf4", {"absmax": fewer}),
        ("nf4", {"quant_map": fewer}),
        ("nf4", {"weight": fewer}),
        ("nf4", {"nf4": text(b"{")}),
        ("nf4", {"nf4": text(b"\xff\xfe")}),
        ("nf4", {"nf4": text(b'"text"')}),
        ("nf4", {"nf4": text(b'{"shape": null, "blocksize": 64}')}),
        ("nf4", {"nf4": text(b'{"shape": [32, -48], "blocksize": 64}')}),
        ("nf4", {"nf4": text(b'{"shape": [32, 48], "blocksize": 0}')}),
        ("nf4", {"nf4": text(b'{"shape": [32, 48], "blocksize": 64, "nested_offset": "x"}')}),
        ("nf4", {"nf4": text(b"[" * 60000)}),
        ("nf4", {"nf4": lambda state: state.repeat(2000)}),
        ("nf4_nested", {"nested_absmax": lambda scales: scales.repeat(2)}),
        ("nf4_nested", {"nested_quant_map": None}),
        ("nf4_nested", {".absmax": lambda codes: codes.float()}),
        ("int8_rows", {"SCB": fewer}),
        ("int8_rows", {"weight_format": lambda order: order + 1}),
        ("int4_group", {"_packed": fewer}),
        ("int4_group", {"_packed": lambda words: words[:, :-1]}),
        ("int4_group", {"_shape": lambda shape: -shape}),
        ("int4_group", {"_shape": lambda shape: shape.float()}),
        ("int4_group", {"_scale": fewer}),
        ("int4_zeros", {"_zero_point": fewer}),
        ("int4_zeros", {"_zero_point": lambda words: words.float()}),
        ("int_quantized", {"_zero_point": fewer}),
        ("int_quantized", {"_zero_point": lambda zeros: zeros.float()}),
    ],
)
def test_parts_that_do_not_fit_are_named(form, change, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"`w\.\w*[.\w]*`, \S+ of shape \[.*\], does not fit the weight `w"
    ) as caught:
        grouped(tmp_path, *changed(form, **change))
    assert str(tmp_path) in str(caught.value.problem.place)
    assert caught.value.problem.expected


@pytest.mark.parametrize(
    "change",
    [
        {"experts.down_proj_scales": lambda scales: scales[:, :-1]},
        {"experts.down_proj_scales": lambda scales: scales.float()},
        {"experts.down_proj_blocks": lambda blocks: blocks[..., :8]},
        {"experts.down_proj_blocks": lambda blocks: blocks[0]},
    ],
)
def test_microscaled_parts_that_do_not_fit(change, tmp_path):
    parts = microscaled(2, 8, 2)
    ((name, how),) = change.items()
    parts[name] = how(parts[name]).contiguous()
    with pytest.raises(CheckpointError, match=r"does not fit the weight `experts\.down_proj`"):
        grouped(tmp_path, parts)


def test_packed_numbers_of_odd_widths_are_refused(tmp_path):
    parts, _ = compressed("pack-quantized", 3, group=16)("w.weight", matrix(8, 64))
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"num_bits": 3}}}}
    with pytest.raises(UnsupportedError, match="quantised to 3 bits"):
        grouped(tmp_path, parts, config)


def test_columns_in_an_order_of_their_own_are_refused(tmp_path):
    parts, config = changed("int4_group")
    parts["w.weight_g_idx"] = torch.zeros(48, dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="actorder"):
        grouped(tmp_path, parts, config)


@pytest.mark.parametrize(
    ("form", "ending"),
    [("fp8_block", "weight"), ("fp8_block", "_scale_inv"), ("fp8_plain", "weight"), ("int8_rows", "weight")],
)
def test_parts_that_are_views_in_a_pickle_are_refused(form, ending, tmp_path):
    tensors, _ = FORMATS[form][0]("w.weight", matrix(32, 48))

    def found():
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        stored = {one.spec.name: one for one in open_pickle(tmp_path / "pytorch_model.bin").tensors}
        return group_tensors(stored, read_settings(settings_of(form)))

    assert list(found().weights) == ["w.weight"]
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name] = tensors[name].t().contiguous().t()
    with pytest.raises(UnsupportedError, match=rf"`{name}`, a part of .* `w\.weight`, is a view"):
        found()


def test_a_file_cut_short_after_planning(tmp_path):
    view = weight_view(tmp_path, changed("fp8_block")[0])
    file = next(view.extents(0, 1)).file
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="in the middle of a tensor"):
        entries(view)
    assert math.prod(view.spec.shape) == 32 * 48
    assert all(isinstance(extent, Extent) for extent in view.extents(3, 500))
