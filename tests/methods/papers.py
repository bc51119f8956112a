"""Every method once more: whole tensors, float64, straight from the formulas of the papers, NumPy only.

Each function takes the base (or None), the list of models and the parameters by the names they have in recipes, and
returns the merged tensor in float64. A new method adds one function and one line of `PAPERS`. Conditions that papers
leave open (what is 0, which of equals is kept) follow the recipe language that this project reads.
"""

from collections.abc import Callable

import numpy as np


def linear(base, models, parameters):
    """Wortsman et al. 2022, arXiv:2203.05482, Recipe 1, with weights: θ = Σ_i w_i θ_i (/ Σ_i w_i)."""
    weights = parameters["weight"]
    total = sum(weight * model for weight, model in zip(weights, models, strict=True))
    return total / sum(weights) if parameters["normalize"] else total


def slerp(base, models, parameters):
    """Shoemake 1985, section 3.3: Slerp(q1, q2; u) = sin((1−u)θ)/sin θ · q1 + sin(uθ)/sin θ · q2, q1·q2 = cos θ."""
    start, end, position = base, models[0], parameters["t"]
    directions = []
    for vector in (start, end):
        norm = np.sqrt((vector**2).sum())
        directions.append(vector / norm if norm > 1e-8 else vector)
    cosine = np.clip((directions[0] * directions[1]).sum(), -1, 1)
    if abs(cosine) > 0.9995:
        return (1 - position) * start + position * end
    angle = np.arccos(cosine)
    return (np.sin((1 - position) * angle) * start + np.sin(position * angle) * end) / np.sin(angle)


def task_arithmetic(base, models, parameters):
    """Ilharco et al. 2023, arXiv:2212.04089, section 2: τ_i = θ_i − θ_pre, θ = θ_pre + λ Σ_i w_i τ_i."""
    weights = parameters["weight"]
    total = sum(weight * (model - base) for weight, model in zip(weights, models, strict=True))
    if parameters["normalize"] and abs(sum(weights)) >= 1e-8:
        total = total / sum(weights)
    return base + parameters["lambda"] * total


def keep_topk(vector, density):
    """Yadav et al. 2023, algorithm 1, line 4: the top k of the entries by magnitude, the others reset to 0."""
    flat = vector.reshape(-1)
    if density >= 1:
        return vector
    if density <= 0 or flat.size == 0:
        return np.zeros_like(vector)
    kept = np.argsort(-np.abs(flat), kind="stable")[: max(1, int(density * flat.size))]
    trimmed = np.zeros_like(flat)
    trimmed[kept] = flat[kept]
    return trimmed.reshape(vector.shape)


def ties(base, models, parameters):
    """Yadav et al. 2023, arXiv:2306.01708, algorithm 1, with weights."""
    deltas = np.stack([model - base for model in models])  # line 3: task vectors
    weights = np.array(parameters["weight"], np.float64).reshape(-1, *[1] * base.ndim)
    trimmed = np.stack([keep_topk(*pair) for pair in zip(deltas, parameters["density"], strict=True)])  # line 4
    if parameters["rescale"]:
        for delta, kept in zip(deltas, trimmed, strict=True):
            before, after = np.abs(delta).sum(), np.abs(kept).sum()
            if before >= 1e-7 and after >= 1e-7:
                kept *= before / after
    votes = weights * trimmed
    elected = np.where(votes.sum(axis=0) >= 0, 1, -1)  # line 8: γ = sgn(Σ_t τ̂_t), of the sum 0 taken as +
    agree = np.sign(votes) == elected  # line 11: A^p = {t : γ_t^p = γ^p}
    merged = (votes * agree).sum(axis=0)
    if parameters["normalize"]:
        divisor = (weights * agree).sum(axis=0)
        merged = merged / np.where(divisor == 0, 1, divisor)  # line 12: the mean over A^p
    return base + parameters["lambda"] * merged  # line 16


def passthrough(base, models, parameters):
    """No paper: θ = s · θ_1."""
    return parameters["scale"][0] * models[0]


PAPERS: dict[str, Callable] = {
    function.__name__: function for function in (linear, slerp, task_arithmetic, ties, passthrough)
}
