"""GGUF files: what is in them, and the model that transformers would make of it.

Only this package knows the format. Blocks are dequantised by the library ``gguf``, which is needed for nothing else.
"""

from mergekit.checkpoint.gguf.container import read_container
from mergekit.checkpoint.gguf.kinds import unpack

__all__ = ["read_container", "unpack"]
