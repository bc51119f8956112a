"""How GGUF packs entries: the names and sizes of its blocks, and what entries are in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.checkpoint.tensors import Kind
from mergekit.errors import CheckpointError

_PLAIN = {0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 30: Kind("BF16", 1, 2)}
_OTHER = "a file in another quantisation"


def kind_numbered(number: int, tensor: str, file: Path) -> Kind:
    """The kind of block with a number in files.

    Parameters:
        number: of the file.
        tensor: which tensor has it, for messages.
        file: the file, for messages.

    Raises:
        CheckpointError: the library `gguf` is needed and not installed, or cannot dequantise such blocks.
    """
    try:
        return _PLAIN.get(number) or _packed(number)
    except ImportError:
        what, hint = "is quantised, and the library `gguf` is not installed", "`pip install 'mergekit[gguf]'`"
    except ValueError:
        what, hint = f"is of type {number}, which the installed `gguf` does not know", f"a newer `gguf`, or {_OTHER}"
    except NotImplementedError as error:
        what, hint = f"is of type {error}, which the library `gguf` does not dequantise", _OTHER
    raise CheckpointError(f"tensor {tensor!r} {what}", place=str(file), hint=hint)


@cache
def _packed(number: int) -> Kind:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    code = GGMLQuantizationType(number)
    kind = Kind(code.name, *GGML_QUANT_SIZES[code])
    try:
        dequantize(np.zeros((1, kind.nbytes), np.uint8), code)
    except NotImplementedError:
        raise NotImplementedError(code.name) from None
    return kind


def unpack(kind: Kind, octets: NDArray[np.uint8], into: NDArray[np.float32]) -> None:
    """The entries of whole blocks.

    Parameters:
        kind: of the blocks.
        octets: their bytes.
        into: as many entries as the blocks have.
    """
    if not octets.size:
        return  # the library cannot reshape nothing
    with np.errstate(all="ignore"):  # what is not finite is found in the output
        into[:] = _entries(kind, octets)


def _entries(kind: Kind, octets: NDArray[np.uint8]) -> NDArray[Any]:
    if kind.name == "F32":
        return octets.view("<f4")
    if kind.name == "F16":
        return octets.view("<f2")
    if kind.name == "BF16":
        return (octets.view("<u2").astype("<u4") << 16).view("<f4")
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks: NDArray[Any] = dequantize(octets.reshape(-1, kind.nbytes), GGMLQuantizationType[kind.name])
    return blocks.reshape(-1)
