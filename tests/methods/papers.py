"""Every method once more: whole tensors, float64, straight from the formulas of the papers, NumPy only.

Each function takes the base (or None), the list of models and the parameters by the names they have in recipes, and
returns the merged tensor in float64. A new method adds one function and one line of `PAPERS`. Conditions that papers
leave open (what is 0, which of equals is kept) follow the recipe language that this project reads.
"""

from collections.abc import Callable

import numpy as np
from papers_delta_sum import DELTA_SUMS


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


def unit(vector):
    """A vector of norm 1 of the same direction, or zeros."""
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else np.zeros_like(vector)


def arc(start, end, position):
    """Spherical linear interpolation of two vectors; a straight line where they are colinear."""
    directions = [vector / max(np.linalg.norm(vector), 1e-7) for vector in (start, end)]
    cosine = np.clip((directions[0] * directions[1]).sum(), -1, 1)
    if 1 - cosine**2 <= 1e-14:
        return (1 - position) * start + position * end
    angle = np.arccos(cosine)
    return (np.sin((1 - position) * angle) * start + np.sin(position * angle) * end) / np.sin(angle)


def vectors_along(axis, tensors):
    """The vectors along one axis of each of several tensors: an array of shape (vectors, tensors, entries)."""
    moved = [np.moveaxis(np.atleast_1d(tensor), axis, -1) for tensor in tensors]
    return np.stack([tensor.reshape(-1, tensor.shape[-1]) for tensor in moved], axis=1)


def tensor_of(vectors, axis, shape):
    """The tensor whose vectors along one axis these are."""
    shape = shape or (1,)
    moved = (*np.delete(shape, axis), shape[axis])
    return np.moveaxis(np.reshape(vectors, moved), -1, axis)


def nuslerp(base, models, parameters):
    """Shoemake 1985, section 3.3, between models or deltas: tensors, or vectors along the last or first dimension."""
    one, two = parameters["weight"]
    position = 0.5 if abs(one + two) < 1e-6 else two / (one + two)
    origin = 0 if base is None else base
    ends = [model - origin for model in models]
    if parameters["nuslerp_flatten"]:
        return origin + arc(*ends, position)
    axis = 0 if parameters["nuslerp_row_wise"] else -1
    merged = np.empty((0, 1)) if not ends[0].size else [arc(*pair, position) for pair in vectors_along(axis, ends)]
    return origin + tensor_of(merged, axis, ends[0].shape).reshape(ends[0].shape)


def multislerp(base, models, parameters):
    """Goddard 2025: logarithms of unit vectors at their normalized mean, averaged, and the exponential of that."""
    epsilon, origin = parameters["eps"], 0 if base is None else base
    weights = np.array(parameters["weight"], np.float64)
    weights = weights / weights.sum() if parameters["normalize_weights"] else weights
    deltas = [model - origin for model in models]
    norms = [np.linalg.norm(delta) for delta in deltas]
    units = [delta / (norm + epsilon) for delta, norm in zip(deltas, norms, strict=True)]
    mean = sum(weight * each for weight, each in zip(weights, units, strict=True))
    length = np.linalg.norm(mean)
    if length < epsilon or length <= 1e-7 * sum(
        np.linalg.norm(weight * each) for weight, each in zip(weights, units, strict=True)
    ):
        return origin + sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
    mean = mean / length
    tangents = [each - (each * mean).sum() * mean for each in units]
    step = sum(weight * tangent for weight, tangent in zip(weights, tangents, strict=True))
    size = np.linalg.norm(step)
    turned = mean * np.cos(size) + step * np.sinc(size / np.pi)
    return origin + turned * (weights @ norms)


def karcher(base, models, parameters):
    """Karcher mean by fixed-point iteration on the sphere, arXiv:2603.04972; norms are averaged apart."""
    tolerance = parameters["tol"]
    norms = np.array([np.linalg.norm(model) for model in models])
    units = [unit(model) for model, norm in zip(models, norms, strict=True) if norm > tolerance * norms.max()]
    if not units:
        return np.zeros_like(models[0])
    mean = sum(units) / len(units)
    mean = unit(mean) if np.linalg.norm(mean) > max(tolerance, 1e-7) else units[0]
    for _ in range(parameters["max_iter"]):
        step = np.zeros_like(mean)
        for each in units:
            cosine = np.clip((mean * each).sum(), -1, 1)
            angle = np.arccos(cosine)
            if tolerance < angle < np.pi - 1e-7:
                step = step + angle / np.sin(angle) * (each - cosine * mean) / len(units)
        size = np.linalg.norm(step)
        if size <= tolerance:
            break
        mean = unit(np.cos(size) * mean + np.sin(size) * step / size)
    return norms.mean() * mean


def stock(base, models):
    """Jang et al. 2024, arXiv:2403.19522: t = N cos θ / (1 + (N − 1) cos θ), w = t w_avg + (1 − t) w_0."""
    count = len(models)
    units = [unit(model - base) for model in models]
    cosine = np.mean([(units[i] * units[j]).sum() for i in range(count) for j in range(i)])
    divisor = 1 + (count - 1) * cosine
    ratio = 0 if abs(divisor) < 1e-6 else count * cosine / divisor
    return ratio * sum(models) / count + (1 - ratio) * base


def model_stock(base, models, parameters):
    """Jang et al. 2024: one ratio for the tensor, or one for each vector along the last dimension."""
    if not parameters["filter_wise"] or not base.size:
        return stock(base, models)
    vectors = vectors_along(-1, [base, *models])
    return tensor_of([stock(base, models) for base, *models in vectors], -1, base.shape).reshape(base.shape)


def sce(base, models, parameters):
    """Wan et al. 2024, arXiv:2408.07990: select by variance, calculate weights from squares, erase minority signs."""
    deltas = np.stack([model - base for model in models])
    count, share = len(models), parameters["select_topk"]
    if share < 1:
        # Of this multiple of the variance it is exact where entries tie; variances are equal if they are in float32.
        apart = np.stack([model - models[0] for model in models])
        variance = (count * (apart**2).sum(axis=0) - apart.sum(axis=0) ** 2).astype(np.float32).reshape(-1)
        kept = np.zeros(variance.shape, bool)
        kept[np.argsort(-variance, kind="stable")[: int(np.count_nonzero(variance) * share)]] = True
        deltas = deltas * kept.reshape(base.shape)
    squares = np.array([(delta**2).sum() for delta in deltas]).reshape(-1, *[1] * base.ndim)
    weights = squares / squares.sum() if squares.sum() else squares
    elected = np.where(deltas.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(deltas) == elected
    divisor = (weights * agree).sum(axis=0)
    return base + (weights * agree * deltas).sum(axis=0) / np.where(divisor == 0, 1, divisor)


def changes(base, models, epsilon):
    """Yuan et al. 2026, arXiv:2601.13572: task vectors that changed, and where one or several models changed."""
    deltas = np.stack([model - base for model in models])
    nonzero = np.abs(deltas) > epsilon
    return deltas * nonzero, nonzero, nonzero.sum(axis=0)


def ram(base, models, parameters):
    """Yuan et al. 2026: what is unique to a model is kept, what is shared is averaged over those that share it."""
    deltas, _, count = changes(base, models, parameters["epsilon"])
    return base + (deltas * (count == 1)).sum(axis=0) + (deltas * (count > 1)).sum(axis=0) / np.maximum(count, 1)


def ramplus_tl(base, models, parameters):
    """Yuan et al. 2026: RAM with the unique part of each model scaled by 1 + r · clip(ρ, 0, α), ρ = shared/unique."""
    deltas, nonzero, count = changes(base, models, parameters["epsilon"])
    merged = base + (deltas * (count > 1)).sum(axis=0) / np.maximum(count, 1)
    for delta, own in zip(deltas, nonzero, strict=True):
        unique, shared = (own & (count == 1)).sum(), (own & (count > 1)).sum()
        ratio = np.clip(shared / max(unique, 1), 0, parameters["alpha"])
        merged = merged + (1 + parameters["r"] * ratio) * delta * (count == 1)
    return merged


def nearswap(base, models, parameters):
    """alchemonaut 2024: t over the distance, clipped to [0, 1], is the share of the model."""
    share = np.clip(parameters["t"] / np.maximum(np.abs(base - models[0]), 1e-6), 0, 1)
    return share * models[0] + (1 - share) * base


def softmax(rows):
    """Shares of each row."""
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def arcee_fusion(base, models, parameters):
    """Arcee AI 2025: importance |x − b| · KL(softmax x, softmax b) per row; above Q2 + 1.5 (Q3 − Q1) x is taken."""
    if not base.size:
        return base
    row, origin = (np.atleast_1d(tensor) for tensor in (models[0], base))
    p, q = softmax(row) + 1e-8, softmax(origin) + 1e-8
    importance = np.abs(row - origin) * np.maximum((p * np.log(p / q)).sum(axis=-1, keepdims=True), 0)
    ordered = np.sort(importance.reshape(-1))
    first, median, third = (ordered[int(quarter * (base.size - 1))] for quarter in (0.25, 0.5, 0.75))
    important = importance >= (median + 1.5 * (third - first)) * (1 - 1e-6)
    return np.where(important, row, origin).reshape(base.shape)


def passthrough(base, models, parameters):
    """No paper: θ = s · θ_1."""
    return parameters["scale"][0] * models[0]


PAPERS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        linear,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        model_stock,
        task_arithmetic,
        *DELTA_SUMS,
        sce,
        ram,
        ramplus_tl,
        nearswap,
        arcee_fusion,
        passthrough,
    )
}
