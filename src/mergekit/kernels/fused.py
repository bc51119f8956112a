"""The kernels that reductions call, under the names that :mod:`mergekit.kernels.arrays` gives their twins."""

from mergekit.kernels.elect import masses
from mergekit.kernels.select import count_values, magnitude_bits, sweep
from mergekit.kernels.sums import gram, gram_deltas

__all__ = ["count_values", "gram", "gram_deltas", "magnitude_bits", "masses", "sweep"]
