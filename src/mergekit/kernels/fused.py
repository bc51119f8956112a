"""All kernels. Those that reductions call have twins of the same names in :mod:`mergekit.kernels.arrays`."""

from mergekit.kernels.compiled import Kernel

combine = Kernel("combine", "combine")
combine_deltas = Kernel("combine", "combine_deltas")
count_values = Kernel("select", "count_values")
elect_sum = Kernel("elect", "elect_sum")
gram = Kernel("sums", "gram")
gram_deltas = Kernel("sums", "gram_deltas")
magnitude_bits = Kernel("select", "magnitude_bits")
masses = Kernel("elect", "masses")
measure = Kernel("sums", "measure")
narrow = Kernel("combine", "narrow")
sweep = Kernel("select", "sweep")
widen = Kernel("combine", "widen")
