"""What a user may choose about a transplant of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, final

Where: TypeAlias = Literal["lm_head", "embed", "yes", "no"]
WHERE = ("lm_head", "embed", "yes", "no")
WEIGHT_SCHEMES = ("distance_proportional", "barycentric", "least_squares")
SUBWORD_METHODS = ("mean", "sum", "weighted_mean", "first_last")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How rows are found for the donor's tokens; each is called like its flag of ``mergekit tokensurgeon``.

    Parameters:
        approximation_method: for tokens that the model does not have; a name of
            :data:`mergekit.surgery.APPROXIMATIONS`.
        k: neighbours, or atoms of a sparse sum, at least 1.
        cosine_similarity: common_interpolation measures angles, not distances.
        weight_scheme: of common_interpolation; one of `WEIGHT_SCHEMES`.
        subword_method: one of `SUBWORD_METHODS`.
        batch_size: tokens at a time; 0 or less for as many as memory allows.
        prefix_match: matrices in which a token may take over the row of its longest beginning that is a token.
        byte_match: matrices in which a token for an ASCII byte and the token of its character may stand for each other.
        magikarp: leave tokens out that seem undertrained.
        new_vocab_noise: standard deviation of normal noise that is added to new rows; None or 0 for none.
        new_vocab_scale: factor of new rows, after the noise; None or 0 for none.
        token_map: donor's tokens that take over the row of a certain token of the model.
        donor_padding: write as many rows as the donor's matrix has, if that is more than its tokens need.
        pad_to_multiple_of: write a multiple of so many rows.
        held_out: known tokens that the method is tried on, at most; 0 for none.
        seed: of random methods, and of the choice of these tokens.
    """

    approximation_method: str = "omp"
    k: int = 64
    cosine_similarity: bool = False
    weight_scheme: str = "distance_proportional"
    subword_method: str = "mean"
    batch_size: int = 512
    prefix_match: Where = "no"
    byte_match: Where = "no"
    magikarp: bool = False
    new_vocab_noise: float | None = None
    new_vocab_scale: float | None = None
    token_map: Mapping[str, str] = field(default_factory=dict)
    donor_padding: bool = False
    pad_to_multiple_of: int | None = None
    held_out: int = 256
    seed: int = 0

    def chosen(self) -> dict[str, Any]:
        """The method, and everything that is not as it is without a word."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = Settings()
        changed = {name: value for name, value in own.items() if value != getattr(usual, name)}
        return {"approximation_method": self.approximation_method, "k": self.k} | changed


def acts_on(where: Where, role: str) -> bool:
    """Whether a setting acts on a matrix.

    Parameters:
        where: what was chosen.
        role: "embedding" or "head".

    Example:
        >>> acts_on("embed", "embedding"), acts_on("lm_head", "embedding"), acts_on("yes", "head")
        (True, False, True)
    """
    return where == "yes" or where == {"embedding": "embed", "head": "lm_head"}[role]
