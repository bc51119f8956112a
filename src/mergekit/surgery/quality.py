"""How good approximated rows are, on tokens that both models have: some are held out, and found again.

Public: :class:`Quality`, :func:`hold_out`, :func:`judge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.tokens import Tokens

Rows = NDArray[np.int64]

_SHARE = 5  # one of so many shared tokens is held out at most
_WORST = 5  # tokens that are named
_LEAST = 1e-30


@final
@dataclass(frozen=True, slots=True)
class Quality:
    """How near approximated rows come to the model's own.

    Parameters:
        method: how they were approximated.
        tensor: the matrix.
        tokens: how many were tried.
        cosine: mean of the cosines to the right rows.
        median: their median.
        low: the value below which a tenth of them is.
        relative_error: mean of ``‖row − right row‖ / ‖right row‖``.
        length: mean of ``‖row‖ / ‖right row‖``.
        seconds: of learning and approximating.
        worst: the tokens with the least cosines, and these.
    """

    method: str
    tensor: str
    tokens: int
    cosine: float
    median: float
    low: float
    relative_error: float
    length: float
    seconds: float
    worst: tuple[tuple[str, float], ...]

    def as_json(self) -> Mapping[str, Any]:
        """Plain values, None where a number is none; without the seconds, which are never the same."""
        numbers = ("cosine", "median", "low", "relative_error", "length")
        return {
            "method": self.method,
            "tensor": self.tensor,
            "tokens": self.tokens,
            **{name: _rounded(getattr(self, name)) for name in numbers},
            "worst": [{"token": text, "cosine": _rounded(cosine)} for text, cosine in self.worst],
        }


def _rounded(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None


def hold_out(tokens: Tokens, shared: Rows, most: int, seed: int) -> NDArray[np.bool_]:
    """Which shared tokens are held out: ordinary ones of several characters, as most new tokens are.

    Parameters:
        tokens: of the donor.
        shared: ids in the donor.
        most: how many at most; a fifth of all in any case.
        seed: of the choice.
    """
    wanted = [place for place, token in enumerate(shared.tolist()) if _is_ordinary(tokens, token)]
    count = min(most, len(wanted), shared.size // _SHARE)
    held = np.zeros(shared.size, bool)
    held[np.random.default_rng(seed).choice(wanted, count, replace=False) if count else []] = True
    return held


def _is_ordinary(tokens: Tokens, token: int) -> bool:
    key = tokens.keys[token][-1]
    return tokens.texts[token] not in tokens.table.added and key.kind == "text" and len(key.text.strip()) > 1


def judge(
    method: str, tensor: str, texts: list[str], found: NDArray[Any], right: NDArray[Any], seconds: float
) -> Quality:
    """Compare rows with the right ones.

    Parameters:
        method: how they were found.
        tensor: the matrix.
        texts: the tokens.
        found: shape (n, width).
        right: the same shape.
        seconds: that it took to find them.
    """
    norms, lengths = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (right, found))
    apart = np.linalg.norm(found - right, axis=1)
    cosines = (found * right).sum(axis=1, dtype=np.float64) / np.maximum(norms * lengths, _LEAST)
    order = np.argsort(cosines, kind="stable")[:_WORST].tolist()
    return Quality(
        method,
        tensor,
        len(texts),
        float(cosines.mean()),
        float(np.median(cosines)),
        float(np.quantile(cosines, 0.1)),
        float((apart / np.maximum(norms, _LEAST)).mean()),
        float((lengths / np.maximum(norms, _LEAST)).mean()),
        seconds,
        tuple((texts[place], float(cosines[place])) for place in order),
    )
