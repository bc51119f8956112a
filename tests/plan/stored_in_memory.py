"""Tensors that views read from memory instead of files."""

from pathlib import Path

import numpy as np

from mergekit.checkpoint import DTYPES, Extent, Stored, TensorSpec
from mergekit.plan.views import Pieces


class Memory:
    """Tensors in memory that are read like files; counts what is read."""

    def __init__(self):
        self.contents, self.read_bytes, self.buffers, self.made = {}, 0, {}, {}

    def store(self, name, array):
        """Keep an array of float32 as a file; uint16 stands for bfloat16."""
        spec = TensorSpec(name, DTYPES["BF16" if array.dtype == np.uint16 else "F32"], array.shape)
        self.contents[Path(name)] = array.tobytes()
        return Pieces.of(Stored(spec, Extent(Path(name), 0, spec.nbytes)))

    def read(self, extent, into):
        self.read_bytes += extent.nbytes
        octets = self.contents[extent.file][extent.start : extent.stop]
        into.view(np.uint8)[:] = np.frombuffer(octets, np.uint8)

    def gather(self, file, starts, places, nbytes, into):
        room = into.view(np.uint8)
        for start, place in zip(starts, places, strict=True):
            self.read(Extent(file, start, start + nbytes), room[place : place + nbytes])

    def buffer(self, use, nbytes):
        self.buffers[use] = np.full(nbytes, 0xA5, np.uint8)  # nobody may rely on what a buffer held
        return self.buffers[use]

    def kept(self, view, make):
        if view not in self.made:
            self.made[view] = make()
        return self.made[view]

    def begin(self):
        """Forget what was kept and counted, as before another tensor."""
        self.read_bytes, self.made = 0, {}
