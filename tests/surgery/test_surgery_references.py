"""T2 and T3: every method against a float64 reference of its own, straight from its formula."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from surgery_samples import EMBEDDING, HEAD
from tiny_checkpoints import write_model

from mergekit.checkpoint import Files
from mergekit.plan import PlanOptions
from mergekit.plan.views import Held
from mergekit.surgery import Settings
from mergekit.surgery.approximation import Targets
from mergekit.surgery.blind import JohnHewitt
from mergekit.surgery.maps import LandmarkPca
from mergekit.surgery.matrices import Anchors, Matrix

K = 8


def arrays(pair, name=EMBEDDING):
    """Rows of shared tokens in both models, rows of new ones in the donor, all rows of the model; float64."""
    donor, model = (made.tensors[name].double().numpy() for made in (pair.donor, pair.model))
    own, rows = (np.array(part) for part in zip(*pair.shared, strict=True))
    return donor[own], model[rows], donor[pair.new], model


def close(found, expected, limit=1e-6):
    error = np.abs(np.asarray(found, np.float64) - expected).max() / max(1e-2, np.abs(expected).max())
    assert error < limit, error


def new_rows(pair, tensors, name=EMBEDDING):
    return tensors[name][pair.new].double().numpy()


# T2


def reference_omp(A, B, t, k):
    residual, chosen = t.copy(), []
    for _ in range(k):
        scores = np.abs(A @ residual)
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        coefficients, *_ = np.linalg.lstsq(A[chosen].T, t, rcond=None)
        residual = t - A[chosen].T @ coefficients
    return coefficients @ B[chosen]


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_t2_omp_is_the_least_squares_solution_on_the_atoms_it_pursues(pair, tmp_path, name):
    _, tensors = pair.operate(f"omp{name}", k=K)
    A, B, T, _ = arrays(pair, name)
    close(new_rows(pair, tensors, name), np.stack([reference_omp(A, B, t, K) for t in T]))


@pytest.mark.parametrize("k", [16, 17, 64, 5000])
def test_t2_omp_stays_moderate_where_k_is_not_less_than_the_width(pair, k):
    report, tensors = pair.operate(f"omp{k}", k=k)
    A, B, T, _ = arrays(pair)
    found = new_rows(pair, tensors)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1).max() < 4 * np.linalg.norm(B, axis=1).max()
    close(found, np.stack([reference_omp(A, B, t, 16) for t in T]), 1e-4)
    warned = [entry["what"] for entry in report["warnings"]]
    assert any("is more than the 364 tokens that are shared" in what for what in warned) == (k == 5000)


def reference_neighbours(A, B, t, k, cosine, scheme):
    distances = np.linalg.norm(A - t, axis=1)
    if cosine:
        distances = 1 - A @ t / np.maximum(np.linalg.norm(A, axis=1) * np.linalg.norm(t), 1e-6)
    near = np.argsort(distances, kind="stable")[:k]
    P = A[near]
    if scheme == "least_squares":
        weights, *_ = np.linalg.lstsq(P.T, t, rcond=None)
    elif scheme == "barycentric":
        system = np.block([[P @ P.T, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        weights = np.linalg.lstsq(system, np.append(P @ t, 1), rcond=1e-12)[0][:k]
        assert abs(weights.sum() - 1) < 1e-8
    else:
        weights = 1 - distances[near] if cosine else 1 / np.maximum(distances[near], 1e-6)
        weights = weights / max(weights.sum(), 1e-6)
    return weights @ B[near]


@pytest.mark.parametrize("cosine", [False, True], ids=["euclid", "cosine"])
@pytest.mark.parametrize("scheme", ["distance_proportional", "barycentric", "least_squares"])
@pytest.mark.parametrize("k", [K, 40])
def test_t2_interpolation_schemes(pair, cosine, scheme, k):
    _, tensors = pair.operate(
        f"near{cosine}{scheme}{k}",
        approximation_method="common_interpolation",
        k=k,
        cosine_similarity=cosine,
        weight_scheme=scheme,
    )
    A, B, T, _ = arrays(pair)
    expected = np.stack([reference_neighbours(A, B, t, k, cosine, scheme) for t in T])
    close(new_rows(pair, tensors), expected)


def rope(x, position, heads, base):
    half = len(x) // heads // 2
    frequencies = base ** (-2 * np.arange(half) / (2 * half))
    out = np.empty_like(x)
    for head in range(heads):
        at = 2 * half * head
        low, high = x[at : at + half], x[at + half : at + 2 * half]
        angle = position * frequencies
        out[at : at + half] = low * np.cos(angle) - high * np.sin(angle)
        out[at + half : at + 2 * half] = high * np.cos(angle) + low * np.sin(angle)
    return out


def rope_position(x, y, heads, base):
    half = len(x) // heads // 2
    frequencies = base ** (-2 * np.arange(half) / (2 * half))
    total = 0.0
    for head in range(heads):
        at = 2 * half * head
        for j in range(half):
            xa, xb, ya, yb = x[at + j], x[at + half + j], y[at + j], y[at + half + j]
            total += np.arctan2(xa * yb - xb * ya, xa * ya + xb * yb) * frequencies[j]
    return total / (heads * (frequencies**2).sum())


def reference_mp_rope(A, B, t, k, donor, model):
    residual, chosen, turned, places = t.copy(), [], [], []
    for _ in range(k):
        scores = np.abs(A @ residual)
        scores[chosen] = -1
        atom = int(scores.argmax())
        along, against = rope_position(A[atom], residual, *donor), rope_position(A[atom], -residual, *donor)
        place = along if abs(along) < abs(against) else against
        x = rope(A[atom], place, *donor)
        residual = residual - (residual @ x) / max(x @ x, 1e-8) * x
        chosen.append(atom)
        turned.append(x)
        places.append(place)
    coefficients, *_ = np.linalg.lstsq(np.stack(turned).T, t, rcond=None)
    images = [rope(B[atom], place, *model) for atom, place in zip(chosen, places, strict=True)]
    return coefficients @ np.stack(images)


@pytest.mark.parametrize("where", ["rope_parameters", "rope_theta", "nothing"])
def test_t2_mp_rope_reads_the_frequencies_of_both_models(make, where):
    pair = make(width=24, donor_width=16)
    bases = (10000.0, 10000.0) if where == "nothing" else (5000.0, 200.0)
    for made, base in zip((pair.donor, pair.model), bases, strict=True):
        file = made.root / "config.json"
        config = json.loads(file.read_text())
        said = {"rope_parameters": {"rope_parameters": {"rope_theta": base, "rope_type": "default"}}}
        config |= said.get(where, {"rope_theta": base} if where == "rope_theta" else {})
        # Four heads of six entries, and two of eight.
        config |= {"num_attention_heads": 2, "num_key_value_heads": 1} if made is pair.donor else {}
        file.write_text(json.dumps(config))
    _, tensors = pair.operate(approximation_method="mp_rope", k=5)
    A, B, T, _ = arrays(pair)
    expected = [reference_mp_rope(A, B, t, 5, (2, bases[0]), (4, bases[1])) for t in T]
    close(new_rows(pair, tensors), np.stack(expected))


def test_t2_stb_maps_by_a_basis_that_both_models_have(pair):
    _, tensors = pair.operate("stb", approximation_method="stb", k=K)
    A, B, T, every = arrays(pair)
    centered = A - A.mean(0)  # the donor is the narrower one
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    bases = []
    for axis in axes:
        residual, chosen = axis.copy(), []
        for _ in range(K):
            scores = np.abs(centered @ residual)
            scores[chosen] = -1
            chosen.append(int(scores.argmax()))
            coefficients, *_ = np.linalg.lstsq(centered[chosen].T, axis, rcond=None)
            residual = axis - centered[chosen].T @ coefficients
        bases.append((coefficients @ A[chosen], coefficients @ B[chosen]))
    of_donor, of_model = (np.stack(part) for part in zip(*bases, strict=True))
    apart = T - pair.donor.tensors[EMBEDDING].double().numpy().mean(0)
    weights = np.linalg.lstsq(of_donor.T, apart.T, rcond=None)[0].T
    close(new_rows(pair, tensors), weights @ of_model + every.mean(0), 1e-5)


def test_t2_mean_zero_and_their_noise_and_scale(pair):
    every = arrays(pair)[3]
    rows = {}
    for name, settings in {
        "mean": {"approximation_method": "mean"},
        "noisy": {"approximation_method": "mean", "new_vocab_noise": 0.1},
        "scaled": {"approximation_method": "mean", "new_vocab_noise": 0.1, "new_vocab_scale": 0.5},
        "none": {"approximation_method": "mean", "new_vocab_noise": 0.0, "new_vocab_scale": 0.0},
        "zero": {"approximation_method": "zero"},
    }.items():
        rows[name] = new_rows(pair, pair.operate(f"blind-{name}", **settings)[1])
    close(rows["mean"], np.tile(every.mean(0), (36, 1)))
    noise = rows["noisy"] - rows["mean"]
    assert abs(noise.std() - 0.1) < 0.01
    assert abs(noise.mean()) < 0.01
    close(rows["scaled"], rows["noisy"] * 0.5)
    assert np.array_equal(rows["none"], rows["mean"])
    assert not rows["zero"].any()


def test_t2_random_rows_depend_on_seed_token_and_entry_only(pair):
    for method in ("randn", "john_hewitt"):
        first, again, other = (
            new_rows(
                pair,
                pair.operate(
                    f"{method}{number}",
                    approximation_method=method,
                    batch_size=size,
                    options=PlanOptions(seed=seed, workers=workers),
                )[1],
            )
            for number, (seed, size, workers) in enumerate([(1, 512, 1), (1, 5, 2), (2, 512, 1)])
        )
        assert np.array_equal(first, again)
        assert np.abs(first - other).max() > 0.01
        if method == "randn":
            assert abs(first.std() - 1) < 0.1


def test_t2_draws_have_the_covariance_of_the_embedding_even_if_that_is_flat():
    values = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    values[:, 5:] = values[:, :1]  # rank 5
    site = SimpleNamespace(
        name="x", model=Matrix(Held.of("x", values), Files()), settings=Settings(approximation_method="john_hewitt")
    )
    draws = JohnHewitt.fit(site).approximate(Targets(np.arange(20000), np.empty((0, 1), np.float32)))
    assert np.isfinite(draws).all()
    close(draws[:, 5:], np.tile(draws[:, :1], (1, 7)), 1e-5)
    wide = values.astype(np.float64)
    sigma = (wide - wide.mean(0)).T @ (wide - wide.mean(0)) / len(wide)
    assert np.abs(np.cov(draws.T) - sigma).max() < 0.05 * np.abs(sigma).max()
    assert np.abs(draws.mean(0) - wide.mean(0)).max() < 0.05


# T3


def procrustes(A, B, T, transposed=False, signs=None):
    """Landmark PCA from singular vectors, with any signs."""
    a, b = A.mean(0), B.mean(0)
    rank = min(A.shape[1], B.shape[1])
    of_donor = np.linalg.svd(A - a, full_matrices=False)[2][:rank].T
    of_model = np.linalg.svd(B - b, full_matrices=False)[2][:rank].T
    if signs is not None:
        of_donor, of_model = of_donor * signs[0], of_model * signs[1]
    u, _, vt = np.linalg.svd(((B - b) @ of_model).T @ ((A - a) @ of_donor))
    rotation = u @ vt if transposed else vt.T @ u.T
    return (T - a) @ of_donor @ rotation @ of_model.T + b


def test_t3_landmark_pca_does_not_depend_on_signs_or_seeds(pair):
    found = [
        new_rows(
            pair, pair.operate(f"pca{seed}", approximation_method="landmark_pca", options=PlanOptions(seed=seed))[1]
        )
        for seed in (0, 7)
    ]
    assert np.array_equal(*found)
    A, B, T, _ = arrays(pair)
    draw = np.random.default_rng(0)
    for _ in range(3):
        signs = draw.choice([-1, 1], (2, 16))
        close(found[0], procrustes(A, B, T, signs=signs), 1e-5)


def test_t3_landmark_pca_fits_known_tokens_no_worse_than_the_transposed_rotation(pair):
    A, B, _, _ = arrays(pair)
    anchors = Anchors(np.arange(len(A)), A.astype(np.float32), B.astype(np.float32))
    fitted = LandmarkPca.fit(SimpleNamespace(anchors=anchors)).approximate(
        Targets(np.arange(len(A)), A.astype(np.float32))
    )
    wrong = procrustes(A, B, A, transposed=True)
    error, other = (np.linalg.norm(rows - B) / np.linalg.norm(B - B.mean(0)) for rows in (fitted, wrong))
    assert error < 0.8 < 1 < other


def test_t3_maps_recover_a_rotation_exactly(make):
    """Where the model is the donor, turned: both maps find every new row."""
    pair = make(width=16, donor_width=16)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))
    for name in (EMBEDDING, HEAD):
        source = pair.donor.tensors[name].double().numpy()
        rows = pair.model.tensors[name].double().numpy()
        for own, row in pair.shared:
            rows[row] = source[own] @ turn
        pair.model.tensors[name] = torch.tensor(rows, dtype=torch.float32)
    write_model(pair.model.root, pair.model.tensors, json.loads((pair.model.root / "config.json").read_text()))
    expected = pair.donor.tensors[EMBEDDING].double().numpy()[pair.new] @ turn
    for method in ("landmark_pca", "omp"):
        _, tensors = pair.operate(method, approximation_method=method, k=16)
        close(new_rows(pair, tensors), expected, 1e-4)
