"""TIES, DARE, Model Breadcrumbs and DELLA once more; see :mod:`papers`. Random methods draw the project's own noise."""

import hashlib

import numpy as np


def uniform(tensor, model, size, seed=0):
    """The noise of a model's entries, from 0 to 1, number by number as the definition says it, in Python integers."""
    digest = hashlib.blake2b(f"{seed} {model} {tensor}".encode(), digest_size=12, person=b"mergekit").digest()
    first, second, third = (int.from_bytes(digest[place : place + 4], "little") for place in (0, 4, 8))
    index = np.arange(size, dtype=object)
    word = 0xFFFFFFFF
    high = index >> 32
    x = ((index & word) + first) & word
    second = second + high * 0x9E3779B9
    for shift, factor, key in ((17, 0xED5AD4BB, second), (11, 0xAC4C1B51, third), (15, 0x31848BAB, 0)):
        x = (((x ^ (x >> shift)) * factor & word) + key) & word
    return ((x ^ (x >> 14)) >> 1).astype(np.float64) / 2.0**31


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


def keep_band(vector, density, gamma):
    """Davari and Belilovsky 2024, section 3: without the greatest and the least entries by magnitude."""
    if density >= 1:
        return vector
    flat = vector.reshape(-1)
    kept = int(density * flat.size)
    dropped = min(int(gamma * flat.size), flat.size - kept)
    places = np.argsort(-np.abs(flat), kind="stable")[dropped : dropped + kept]
    band = np.zeros_like(flat)
    band[places] = flat[places]
    return band.reshape(vector.shape)


def keep_random(vector, density, draws):
    """Yu et al. 2024, equation 1: an entry is kept with probability 1 − p."""
    # Probabilities are resolved to 2⁻³¹.
    return vector * (draws < round(density * 2**31) / 2**31).reshape(vector.shape)


def keep_ranked(vector, density, epsilon, draws, rescale):
    """Deep et al. 2024, section 3: MAGPRUNE, probabilities by rank within each row."""
    if density >= 1 or density <= 0 or not vector.size:
        return vector * density
    width = vector.shape[-1] if vector.ndim else 1
    spread = min(epsilon, density, 1 - density)
    thinned = []
    for row, own in zip(vector.reshape(-1, width), draws.reshape(-1, width), strict=True):
        magnitude = np.abs(row)
        less = np.searchsorted(np.sort(magnitude), magnitude)
        upto = np.searchsorted(np.sort(magnitude), magnitude, side="right")
        rank = (less + upto - 1) / 2  # from 0; equal magnitudes share the middle of their ranks
        chance = density - spread + 2 * spread * rank / (width - 1) if width > 1 else np.full(1, density)
        kept = own < chance
        thinned.append(np.where(kept, row / np.where(kept, chance, 1) if rescale else row, 0))
    return np.reshape(thinned, vector.shape)


def norm(vector, which):
    """L1, L2 or greatest magnitude."""
    order = {"l1": 1, "l2": 2, "linf": np.inf}[which]
    return np.linalg.norm(vector.reshape(-1), order)


def matched(thinned, deltas, which):
    """What is kept, with the norm of the whole."""
    for kept, delta in zip(thinned, deltas, strict=True):
        before, after = (norm(delta, which), norm(kept, which)) if delta.size else (0, 0)
        if before >= 1e-7 and after >= 1e-7:
            kept *= before / after
    return thinned


def added(base, thinned, parameters):
    """b + λ Σ w τ̂ (/ Σ w)."""
    weights = np.array(parameters["weight"], np.float64)
    total = np.tensordot(weights, thinned, 1)
    if parameters["normalize"] and abs(weights.sum()) >= 1e-8:
        total = total / weights.sum()
    return base + parameters["lambda"] * total


def elected(base, thinned, parameters):
    """Yadav et al. 2023, algorithm 1, lines 8 to 16, with weights."""
    weights = np.array(parameters["weight"], np.float64).reshape(-1, *[1] * base.ndim)
    votes = weights * thinned
    polled = np.sign(votes) if parameters.get("consensus_method") == "count" else votes
    sign = np.where(polled.sum(axis=0) >= 0, 1, -1)  # line 8: γ = sgn(Σ_t τ̂_t), of the sum 0 taken as +
    agree = np.sign(votes) == sign  # line 11: A^p = {t : γ_t^p = γ^p}
    merged = (votes * agree).sum(axis=0)
    if parameters["normalize"]:
        divisor = (weights * agree).sum(axis=0)
        merged = merged / np.where(divisor == 0, 1, divisor)  # line 12: the mean over A^p
    return base + parameters["lambda"] * merged  # line 16


def task_vectors(base, models):
    """Line 3 of algorithm 1."""
    return np.stack([model - base for model in models])


def ties(base, models, parameters):
    """Yadav et al. 2023, arXiv:2306.01708, algorithm 1, with weights."""
    deltas = task_vectors(base, models)
    thinned = np.stack([keep_topk(*pair) for pair in zip(deltas, parameters["density"], strict=True)])
    if parameters["rescale"]:
        thinned = matched(thinned, deltas, parameters["rescale_norm"])
    return elected(base, thinned, parameters)


def breadcrumbs_votes(base, models, parameters):
    deltas = task_vectors(base, models)
    settings = zip(deltas, parameters["density"], parameters["gamma"], strict=True)
    thinned = np.stack([keep_band(*each) for each in settings])
    return matched(thinned, deltas, parameters["rescale_norm"]) if parameters["rescale"] else thinned


def breadcrumbs(base, models, parameters):
    """Davari and Belilovsky 2024, arXiv:2312.06795, section 3."""
    return added(base, breadcrumbs_votes(base, models, parameters), parameters)


def breadcrumbs_ties(base, models, parameters):
    """Breadcrumbs with the election of TIES."""
    return elected(base, breadcrumbs_votes(base, models, parameters), parameters)


def dare_votes(base, models, parameters, tensor, seed):
    deltas = task_vectors(base, models)
    thinned = []
    for place, (delta, density) in enumerate(zip(deltas, parameters["density"], strict=True)):
        kept = keep_random(delta, density, uniform(tensor, place, delta.size, seed))
        rescaled = parameters["rescale"] and parameters["rescale_norm"] == "none" and density
        thinned.append(kept / density if rescaled else kept)  # equation 3
    if parameters["rescale"] and parameters["rescale_norm"] != "none":
        return matched(np.stack(thinned), deltas, parameters["rescale_norm"])
    return np.stack(thinned)


def dare_linear(base, models, parameters, tensor="tensor", seed=0):
    """Yu et al. 2024, arXiv:2311.03099, equations 1 to 3, with task arithmetic."""
    return added(base, dare_votes(base, models, parameters, tensor, seed), parameters)


def dare_ties(base, models, parameters, tensor="tensor", seed=0):
    """DARE with the election of TIES."""
    return elected(base, dare_votes(base, models, parameters, tensor, seed), parameters)


def della_votes(base, models, parameters, tensor, seed):
    deltas = task_vectors(base, models)
    rescale = parameters["rescale"] and parameters["rescale_norm"] == "none"
    settings = zip(deltas, parameters["density"], parameters["epsilon"], strict=True)
    thinned = [
        keep_ranked(delta, density, epsilon, uniform(tensor, place, delta.size, seed), rescale)
        for place, (delta, density, epsilon) in enumerate(settings)
    ]
    if parameters["rescale"] and parameters["rescale_norm"] != "none":
        return matched(np.stack(thinned), deltas, parameters["rescale_norm"])
    return np.stack(thinned)


def della(base, models, parameters, tensor="tensor", seed=0):
    """Deep et al. 2024, arXiv:2406.11617: drop (MAGPRUNE), elect, fuse."""
    return elected(base, della_votes(base, models, parameters, tensor, seed), parameters)


def della_linear(base, models, parameters, tensor="tensor", seed=0):
    """DELLA without the election."""
    return added(base, della_votes(base, models, parameters, tensor, seed), parameters)


DELTA_SUMS = (ties, breadcrumbs, breadcrumbs_ties, dare_linear, dare_ties, della, della_linear)
RANDOM = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})
"""Papers that take the tensor's name and the seed."""
