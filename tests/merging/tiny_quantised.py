"""Tiny quantised weights, made by the libraries that define the formats, and what those libraries read back."""

from functools import cache

import torch

EDGE = 16  # of blocks in the block-scaled formats


def _scaled_float8(weight, grid):
    """A matrix in FP8 with one scale per block of a grid of (rows, columns)."""
    rows, columns = weight.shape
    high, wide = -(-rows // grid[0]), -(-columns // grid[1])
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(rows)) / 64 + 1e-3
    spread = scales.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return codes, scales, codes.float() * spread


def fp8_block(name, weight):
    grid = [-(-size // EDGE) for size in weight.shape]
    padded = torch.nn.functional.pad(weight, (0, grid[1] * EDGE - weight.shape[1], 0, grid[0] * EDGE - weight.shape[0]))
    codes, scales, dense = _scaled_float8(padded, grid)
    rows, columns = weight.shape
    parts = {name: codes[:rows, :columns].contiguous(), f"{name}_scale_inv": scales}
    return parts, dense[:rows, :columns].contiguous()


def fp8_tensor(name, weight):
    codes, scales, dense = _scaled_float8(weight, (1, 1))
    stem = name.removesuffix("weight")
    return {name: codes, f"{name}_scale": scales.reshape(()), f"{stem}input_scale": torch.ones(())}, dense


def fp8_channel(name, weight):
    codes, scales, dense = _scaled_float8(weight, (len(weight), 1))
    return {name: codes, f"{name}_scale": scales}, dense


def fp8_plain(name, weight):
    codes = (weight * 8).to(torch.float8_e5m2)
    return {name: codes}, codes.float()


def _four_bits(kind, nested):
    def make(name, weight):
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
        parts = {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
        if weight.numel() % 64 == 0:  # the library's CPU kernel errs on rows that are no whole blocks
            state.shape = torch.Size((weight.numel() // 64, 64))
        return {name: codes, **parts}, functional.dequantize_4bit(codes, state).reshape(weight.shape)

    return make


def int8_rows(name, weight):
    from bitsandbytes import functional

    codes, largest, _ = functional.int8_vectorwise_quant(weight.half())
    stem = name.removesuffix("weight")
    parts = {name: codes, f"{stem}SCB": largest, f"{stem}weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, functional.int8_vectorwise_dequant(codes, largest)


@cache
def _compressor(form):
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(form)


def compressed(form, bits, kind="int", group=None, symmetric=True, dtype=torch.float32):
    """A weight as compressed-tensors writes it: scales for groups of columns, or for rows."""

    def make(name, weight):
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        how = QuantizationArgs(num_bits=bits, type=kind, symmetric=symmetric, **strategy)
        scheme = QuantizationScheme(targets=["Linear"], weights=how)
        rows, columns = weight.shape
        blocks = weight.reshape(rows, -1, group or columns)
        least, most = blocks.amin(-1), blocks.amax(-1)
        largest = 448.0 if kind == "float" else 2.0 ** (bits - 1) - 0.5
        state = {"weight": weight, "weight_scale": (torch.maximum(most, -least) / largest + 1e-4).to(dtype)}
        if not symmetric:
            state["weight_scale"] = ((most - least) / (2 * largest) + 1e-4).to(dtype)
            state["weight_zero_point"] = (-largest - least / state["weight_scale"]).round().clamp(-largest, largest)
            state["weight_zero_point"] = state["weight_zero_point"].to(torch.int8)
        packed = _compressor(form).compress(state, scheme)
        stem = name.removesuffix("weight")
        dense = _compressor(form).decompress(dict(packed), scheme)["weight"]
        return {f"{stem}{key}": part.contiguous() for key, part in packed.items()}, dense.contiguous()

    return make


def _section(form, bits):
    weights = {"num_bits": bits, "type": "int"}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FORMATS = {
    "fp8_block": (fp8_block, {"quant_method": "fp8", "weight_block_size": [EDGE, EDGE]}),
    "fp8_tensor": (fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8_channel": (fp8_channel, {"quant_method": "fbgemm_fp8"}),
    "fp8_plain": (fp8_plain, None),
    "nf4": (_four_bits("nf4", nested=False), BNB4),
    "nf4_nested": (_four_bits("nf4", nested=True), BNB4),
    "fp4_nested": (_four_bits("fp4", nested=True), BNB4),
    "int8_rows": (int8_rows, {"load_in_8bit": True}),
    "int4_group": (compressed("pack-quantized", 4, group=16), _section("pack-quantized", 4)),
    "int4_zeros": (compressed("pack-quantized", 4, group=8, symmetric=False), _section("pack-quantized", 4)),
    "int8_pack": (compressed("pack-quantized", 8, symmetric=False), _section("pack-quantized", 8)),
    "int_quantized": (compressed("int-quantized", 8, symmetric=False), _section("int-quantized", 8)),
    "float_quantized": (compressed("float-quantized", 8, kind="float"), _section("float-quantized", 8)),
}
"""By name: a function from a weight's name and the weight to its parts and the weight as they say it, and settings."""


def quantised_model(form, tensors):
    """All matrices of the layers quantised; returns what is stored, and what it stands for."""
    make, _ = FORMATS[form]
    stored, dense = {}, {}
    for name, tensor in tensors.items():
        parts, meant = make(name, tensor) if name.endswith("_proj.weight") else ({name: tensor}, tensor)
        stored |= parts
        dense[name] = meant
    return stored, dense


def settings_of(form):
    section = FORMATS[form][1]
    return {} if section is None else {"quantization_config": section}
