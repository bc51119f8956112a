"""Bytes: dtypes, headers, model folders, positioned reads and the preallocated writer.

A checkpoint is a mapping of tensor names to what the tensors are and where their bytes lie, whatever file they are in.
Nothing here knows what a model is, and nothing computes.
"""

from mergekit.checkpoint.dtypes import DTYPES, DType, dtype_titled
from mergekit.checkpoint.folder import Checkpoint, open_checkpoint
from mergekit.checkpoint.header import Header, header_bytes, read_header
from mergekit.checkpoint.pickled import Pickled, open_pickle
from mergekit.checkpoint.reading import Files, read_tensor
from mergekit.checkpoint.tensors import Blocks, Extent, Kind, Stored, TensorSpec
from mergekit.checkpoint.writing import Shard, ShardWriter, plan_shards, shard_index

__all__ = [
    "DTYPES",
    "Blocks",
    "Checkpoint",
    "DType",
    "Extent",
    "Files",
    "Header",
    "Kind",
    "Pickled",
    "Shard",
    "ShardWriter",
    "Stored",
    "TensorSpec",
    "dtype_titled",
    "header_bytes",
    "open_checkpoint",
    "open_pickle",
    "plan_shards",
    "read_header",
    "read_tensor",
    "shard_index",
]
