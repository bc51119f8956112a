"""The methods by which rows are approximated, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergekit.surgery.approximation import Approximation
from mergekit.surgery.blind import JohnHewitt, Mean, Randn, Zero
from mergekit.surgery.maps import LandmarkPca, SparseTokenBasis
from mergekit.surgery.neighbours import CommonInterpolation
from mergekit.surgery.pursuit import MpRope, Omp
from mergekit.surgery.subword import Subword

APPROXIMATIONS: Mapping[str, type[Approximation]] = MappingProxyType(
    {
        "omp": Omp,
        "common_interpolation": CommonInterpolation,
        "subword": Subword,
        "landmark_pca": LandmarkPca,
        "stb": SparseTokenBasis,
        "mp_rope": MpRope,
        "mean": Mean,
        "john_hewitt": JohnHewitt,
        "zero": Zero,
        "randn": Randn,
    }
)
"""What `--approximation-method` may be."""
