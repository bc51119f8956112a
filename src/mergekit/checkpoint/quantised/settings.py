"""What config.json says about quantisation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from mergekit.checkpoint.dtypes import DTYPES, DType, dtype_titled
from mergekit.errors import UnsupportedError

KEYS = ("quantization_config", "compression_config")
"""Where configs speak of quantisation."""

SIDE_FILES = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json", "quant_strategy.json"})
"""Files beside config.json that tell loaders how weights are quantised."""

_READ = frozenset({"fp8", "fbgemm_fp8", "mxfp8", "mxfp4", "bitsandbytes", "compressed-tensors", "modelopt"})
_READ_FORMATS = frozenset({"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"})
_DENSE = "dense"
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How a checkpoint says it is quantised.

    Parameters:
        sections: the entries of config.json about it.
        dtype: of the weights, had they not been quantised.
        family: `model_type` of the config.
    """

    sections: tuple[Mapping[str, object], ...]
    dtype: DType
    family: str = ""

    @property
    def method(self) -> str | None:
        """Name of the way of quantising; None if config.json does not speak of any."""
        if not self.sections:
            return None
        told = self.sections[0].get("quant_method")
        if isinstance(told, str):
            return told.lower()
        return "bitsandbytes" if any(key.startswith("load_in_") for key in self.sections[0]) else "unknown"

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of blocks that share a scale."""
        found = [*self._values("weight_block_size"), *self._values("block_structure")]
        return tuple((pair[0], pair[1]) for pair in found if isinstance(pair, list) and _are_sizes(pair))

    @property
    def bits(self) -> frozenset[int]:
        """Widths of whole numbers."""
        return frozenset(bits for bits in self._values("num_bits") if isinstance(bits, int))

    @property
    def by_layer(self) -> bool:
        """Whether layers are named by number, so that stacking them anew would make it wrong."""
        return re.search(r"\.\d+\b", json.dumps(self.sections)) is not None

    def _values(self, key: str) -> Iterator[object]:
        yield from _found(self.sections, key)

    def check(self, place: str) -> None:
        """Refuse what no codec reads.

        Parameters:
            place: of the model, for messages.

        Raises:
            UnsupportedError: the weights are quantised in another way.
        """
        kind = self.method
        if kind is not None and kind not in _READ:
            raise _refusal(kind, place)
        if kind == "bitsandbytes" and self.family in _TRANSPOSED:
            raise _refusal(f"bitsandbytes, which turns the matrices of {self.family} round", place)
        for form in self._values("format"):
            if kind == "compressed-tensors" and form not in _READ_FORMATS and form not in (None, _DENSE):
                raise _refusal(f"compressed-tensors, {form}", place)
        if any(self._values("transform_config")):
            raise _refusal("compressed-tensors with rotated weights", place)


def _refusal(kind: str, place: str) -> UnsupportedError:
    return UnsupportedError(
        f"the model is quantised ({kind}), and this version cannot read such weights",
        place=place,
        expected="FP8, MXFP4, bitsandbytes NF4, FP4 or int8, or compressed-tensors int4 or int8",
        hint="the unquantised checkpoint of the same model",
    )


def _are_sizes(pair: list[object]) -> bool:
    return len(pair) == 2 and all(type(size) is int and size > 0 for size in pair)


def _found(value: object, key: str) -> Iterator[object]:
    """Every value with a key, anywhere in nested settings."""
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from _found(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _found(inner, key)


def read_settings(config: Mapping[str, object]) -> Settings:
    """Read how a checkpoint says it is quantised.

    Parameters:
        config: the contents of config.json.

    Example:
        >>> settings = read_settings({"dtype": "float16", "quantization_config": {"quant_method": "fp8"}})
        >>> settings.method, settings.dtype.name
        ('fp8', 'F16')
    """
    sections = [section for key in KEYS for section in _found(config, key) if isinstance(section, Mapping) and section]
    return Settings(tuple(sections), _dtype(config), str(config.get("model_type", "")))


def _dtype(config: Mapping[str, object]) -> DType:
    """What the config says, if that is a dtype of weights that are not quantised."""
    others = {key: value for key, value in config.items() if key not in KEYS}
    for title in (title for key in ("dtype", "torch_dtype") for title in _found(others, key)):
        with suppress(ValueError):
            dtype = dtype_titled(str(title).removeprefix("torch."))
            if dtype.name in _FLOATS:
                return dtype
    return DTYPES["BF16"]
