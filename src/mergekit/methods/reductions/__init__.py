"""What methods ask about whole tensors: dot products, exact order statistics, norms."""

from mergekit.methods.reductions.kth import Cut, Kth, Magnitude, Score, nth_greatest, trimmed
from mergekit.methods.reductions.sums import GrainSums, Gram, Norms, exact_sums

__all__ = ["Cut", "GrainSums", "Gram", "Kth", "Magnitude", "Norms", "Score", "exact_sums", "nth_greatest", "trimmed"]
