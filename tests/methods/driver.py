"""Methods at work on one tensor in memory, the way the engine does it: sweeps over stripes, then stripe by stripe."""

from dataclasses import dataclass

import numpy as np
import torch
from kernel_formats import RAW, decode, encode

from mergekit.kernels import arrays, fused
from mergekit.methods import Block, Method, Target

PATHS = ("fused", "default", "numpy", "torch")
"""The method's own kernel; `Method.fuse` of the base class; `merge` on NumPy arrays; `merge` on torch tensors."""

TWINS = ("numpy", "torch")


@dataclass(frozen=True)
class Stage:
    """Operands of one tensor, raw and flat, and how they are worked on.

    Parameters:
        rows: raw entries, shape (k, n), the base first if `based`.
        target: the tensor.
        path: one of `PATHS`.
        stripe: grains at a time; None for the whole tensor.
        workers: into how many spans sweeps are divided.
        sampled: how many grains a reduction sees as a sample.
    """

    rows: np.ndarray
    based: bool
    target: Target
    path: str = "fused"
    stripe: int | None = None
    workers: int = 1
    sampled: int = 3

    @property
    def entries(self):
        return self.rows.shape[1]

    def block(self, rows, start):
        rows = np.ascontiguousarray(rows)
        if self.path in ("fused", "default"):
            return Block(rows, self.based, start, fused, self.target)
        wide = decode(rows)
        return Block(torch.from_numpy(wide) if self.path == "torch" else wide, self.based, start, arrays, self.target)

    def spans(self):
        """The tensor cut into stripes, one list for each worker."""
        step = self.target.grain * (self.stripe or max(1, self.entries))
        cuts = [(start, min(start + step, self.entries)) for start in range(0, self.entries, step)]
        share = -(-len(cuts) // self.workers)
        return [cuts[share * worker : share * (worker + 1)] for worker in range(self.workers)]

    def sample(self):
        grain = self.target.grain
        last = self.entries // grain - 1
        if last < self.sampled:
            return [self.block(self.rows, 0)]
        starts = [grain * (last * index // (self.sampled - 1)) for index in range(self.sampled)]
        return [self.block(self.rows[:, start : start + grain], start) for start in starts]


def search(reduction, stage, stats):
    """Do a reduction: its result, and after how many sweeps it was done."""
    found = reduction.begin(stage.target, stage.sample, stats)
    sweeps = 0
    while not found.done:
        scratches = []
        for spans in stage.spans():
            scratch = found.scratch()
            for start, stop in (part for ends in spans for part in found.wanted(*ends)):
                found.visit(stage.block(stage.rows[:, start:stop], start), scratch)
            scratches.append(scratch)
        found.close(scratches)
        sweeps += 1
        assert sweeps < 20, "the search does not end"
    return found.result(), sweeps


def merge_stripe(method, block, stats, path, out_format):
    out = np.empty(block.rows.shape[1], RAW[out_format])
    if path == "fused":
        method.fuse(block, stats, out)
    elif path == "default":
        Method.fuse(method, block, stats, out)
    else:
        merged = arrays.host(method.merge(block, stats))
        assert merged.dtype == np.float32, "`merge` must stay in float32"
        assert merged.shape == out.shape
        out = encode(merged, out_format)
    return out


def run_method(method, base, models, raw_format, stripe=None, path="fused", *, out_format=None, workers=1, seed=0):
    """Merge raw tensors of any shape.

    Parameters:
        base: raw array or None.
        models: raw arrays of the same shape.
        raw_format: format of the inputs.
        stripe: grains at a time; None for the whole tensor.
        path: one of `PATHS`.
        out_format: format of the result, by default that of the inputs.
        workers: into how many spans sweeps are divided.
        seed: of the noise.

    Returns:
        The merged tensor, raw, of the same shape.
    """
    operands = ([] if base is None else [base]) + list(models)
    assert all(operand.dtype == RAW[raw_format] for operand in operands)
    rows = np.stack([np.asarray(operand).reshape(-1) for operand in operands])
    shape = operands[0].shape
    target = Target("tensor", shape, method.grain(shape), seed)
    stage = Stage(rows, base is not None, target, path, stripe, workers)
    stats = {}
    for reduction in method.reductions():
        stats[reduction.name], _ = search(reduction, stage, stats)
    parts = [np.empty(0, RAW[out_format or raw_format])]
    for start, stop in (span for spans in stage.spans() for span in spans):
        block = stage.block(rows[:, start:stop], start)
        parts.append(merge_stripe(method, block, stats, path, out_format or raw_format))
    return np.concatenate(parts).reshape(operands[0].shape)
