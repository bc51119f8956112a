"""Tokens whose rows look as if they had never been trained.

Public: :func:`well_trained`.

Reference: Land and Bartolo 2024, https://arxiv.org/abs/2405.05417
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit.surgery.matrices import Matrix, Rows
from mergekit.surgery.tokens import Tokens

_SHARE = 0.01  # of tokens that are suspected: those with the least norms, and those nearest to unused rows
_NEAR = 0.5  # cosine to the mean of unused rows up to which nobody is suspected
_UNUSED = ("unused_token", "reserved_special_token")
_LEAST = 1e-12


def well_trained(tokens: Tokens, embedding: Matrix, head: Matrix | None) -> frozenset[int]:
    """The ids of tokens that seem trained.

    Left out are tokens that say that they are unused; those whose embeddings are shorter than those of 99 %; and, where
    there are unused rows, those whose row in either matrix is nearer to the mean of the unused ones than those of 99 %,
    by a cosine above 0.5.

    Parameters:
        tokens: of the model.
        embedding: its input embedding.
        head: its output head; None if that is the embedding.
    """
    unused = _unused(tokens, embedding.height)
    bad = np.zeros(embedding.height, bool)
    bad[unused] = True
    norms = np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for _, block in embedding.blocks()])
    bad |= norms < np.quantile(norms, _SHARE)
    for matrix in (embedding, head):
        own = unused[unused < matrix.height] if matrix is not None else unused[:0]
        if matrix is not None and own.size:
            cosines = _cosines(matrix, own)
            count = min(bad.size, cosines.size)
            bad[:count] |= cosines[:count] > max(np.quantile(cosines, 1 - _SHARE), _NEAR)
    return frozenset(number for number in tokens.texts if number < bad.size and not bad[number])


def _unused(tokens: Tokens, height: int) -> Rows:
    """Rows without a token, and those of tokens that say so."""
    named = {number for number, text in tokens.texts.items() if any(word in text for word in _UNUSED)}
    return np.array([row for row in range(height) if row in named or row not in tokens.texts], np.int64)


def _cosines(matrix: Matrix, unused: Rows) -> NDArray[Any]:
    """Of every row to the mean of the unused ones."""
    mean = matrix.rows(unused).mean(axis=0, dtype=np.float64)
    found = []
    for _, block in matrix.blocks():
        norms = np.linalg.norm(block.astype(np.float64), axis=1) * np.linalg.norm(mean)
        found.append(block @ mean / np.maximum(norms, _LEAST))
    return np.concatenate(found)
