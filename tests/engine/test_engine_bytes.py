"""From a plan to bytes: the same ones whatever the number of threads and the size of stripes, and the right ones."""

from itertools import pairwise

import pytest
import torch
from held_tasks import tensor_of
from hypothesis import given
from hypothesis import strategies as st
from papers import PAPERS
from papers_delta_sum import RANDOM
from tiny_checkpoints import (
    assert_rounded,
    fine_tuned,
    llama_config,
    llama_shapes,
    merge,
    mixtral,
    octets,
    random_tensors,
    read_model,
    recipe,
    write_model,
)

from mergekit.api.memory import HeldTensors, merger
from mergekit.checkpoint import DTYPES, TensorSpec
from mergekit.engine.compute import Fused
from mergekit.engine.local import Team
from mergekit.errors import DeviceError, IncompatibleModelsError, NonFiniteError
from mergekit.kernels import GRAIN
from mergekit.methods import METHODS
from mergekit.methods.passthrough import Passthrough
from mergekit.plan import Memory, TensorTask, memory

DTYPE = {"base": torch.bfloat16, "a": torch.float32, "b": torch.float16, "c": torch.bfloat16}

ODD = {
    "model.odd.scalar": (),
    "model.odd.empty": (0, 7),
    "model.odd.one": (1,),
    "model.odd.prime": (5, 1009, 3),
    "model.odd.grain": (GRAIN,),
    "model.odd.beyond": (3, GRAIN + 1),
}
"""Tensors that no stripe divides evenly."""


def settings_of(method):
    """Parameters that make a method do all it can, and the letters of the models it merges."""
    needs, count = METHODS[method].needs, 3
    count = max(needs.least, min(needs.most or count, count))
    values = {}
    for declared in METHODS[method].parameters():
        first = SETTINGS.get((method, declared.name), SETTINGS.get(declared.name, declared.default))
        values[declared.name] = [first * (1 - 0.1 * place) for place in range(count)] if declared.per_model else first
    return values, "abc"[:count]


SETTINGS = {
    "weight": 0.6,
    "density": 0.7,
    "epsilon": 0.1,
    "gamma": 0.05,
    "lambda": 0.8,
    "rescale": True,
    "scale": 1.25,
    "t": 0.3,
    "filter_wise": True,
    "nuslerp_flatten": False,
    "select_topk": 0.4,
    ("nearswap", "t"): 0.002,
    ("ram", "epsilon"): 1e-4,
    ("ramplus_tl", "epsilon"): 1e-4,
}
"""Values of parameters, of the first model where each has one; what is not here keeps its default."""


def odd_tensors(seed, dtype):
    return random_tensors({**llama_shapes(llama_config(layers=2)), **ODD}, seed, dtype)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three models with odd tensors; each is stored in a dtype of its own."""
    root = tmp_path_factory.mktemp("odd")
    base = odd_tensors(0, torch.float32)
    for seed, (name, dtype) in enumerate(DTYPE.items()):
        tensors = fine_tuned(base, seed) if seed else base
        write_model(root / name, {key: value.to(dtype) for key, value in tensors.items()}, llama_config(layers=2))
    return root


VARIANTS = [
    *((method, {}) for method in METHODS),
    *((method, {"rescale_norm": "l2"}) for method in ("ties", "breadcrumbs", "dare_ties", "della_linear")),
    ("dare_linear", {"rescale_norm": "linf"}),
    ("nuslerp", {"nuslerp_row_wise": True}),
    ("nuslerp", {"nuslerp_flatten": True}),
    ("model_stock", {"filter_wise": False}),
]


def text_for(method, models, others=None, **settings):
    parameters, names = settings_of(method)
    parameters |= others or {}
    per_model = {each.name for each in METHODS[method].parameters() if each.per_model}
    own = [
        {key: value[number] for key, value in parameters.items() if key in per_model} for number in range(len(names))
    ]
    shared = {key: value for key, value in parameters.items() if key not in per_model and value != ""}
    entries = [(models / name, values) for name, values in zip(names, own, strict=True)]
    base = None if METHODS[method].needs.base == "ignored" else str(models / "base")
    return recipe(method, entries, base_model=base, parameters=shared, **settings)


def reference(method, models, name):
    """What the paper makes of a tensor, in float64."""
    parameters, names = settings_of(method)
    read = {who: read_model(models / who)[name].double().numpy() for who in ("base", *names)}
    drawn = {"tensor": name} if method in RANDOM else {}
    base = None if METHODS[method].needs.base == "ignored" else read["base"]
    return PAPERS[method](base, [read[who] for who in names], parameters, **drawn)


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_mixed_inputs_equal_the_paper_rounded(method, out_dtype, models, tmp_path):
    merge(text_for(method, models, out_dtype=out_dtype), tmp_path / "out")
    for name, found in read_model(tmp_path / "out").items():
        assert found.dtype == getattr(torch, out_dtype)
        # Float64 outputs hold numbers of float32 arithmetic.
        assert_rounded(found.float() if out_dtype == "float64" else found, reference(method, models, name))


@pytest.mark.parametrize(("method", "others"), VARIANTS)
def test_threads_and_stripes_do_not_change_a_byte(method, others, models, tmp_path, monkeypatch):
    found = set()
    for number, (workers, stripe) in enumerate([(1, 1 << 18), (2, 1 << 18), (5, 1 << 18), (1, GRAIN), (2, GRAIN)]):
        monkeypatch.setattr(memory, "_STRIPE", stripe)
        out = tmp_path / str(number)
        watch = merge(text_for(method, models, others, out_dtype="bfloat16"), out, workers=workers)
        assert (watch.plan.memory.workers, watch.plan.memory.stripe) == (workers, stripe)
        found.add((out / "model.safetensors").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("method", METHODS)
def test_torch_gives_the_same_numbers(method, models, tmp_path):
    merge(text_for(method, models, out_dtype="float32"), tmp_path / "kernels")
    merge(text_for(method, models, out_dtype="float32"), tmp_path / "torch", device="cpu")
    kernels, on_torch = read_model(tmp_path / "kernels"), read_model(tmp_path / "torch")
    for name, expected in kernels.items():
        torch.testing.assert_close(on_torch[name], expected, rtol=1e-6, atol=1e-6 * 0.2)


@pytest.mark.parametrize("method", METHODS)
def test_progress_adds_up_to_the_plan(method, models, tmp_path):
    watch = merge(text_for(method, models), tmp_path / "out", workers=2)
    assert sum(watch.bytes) == watch.plan.read_bytes + watch.plan.write_bytes
    assert all(nbytes >= 0 for nbytes in watch.bytes)


ABSENT = ["cuda:99", *(kind for kind in ("cuda", "xpu", "mps") if not getattr(torch, kind).is_available())]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_there(device, models, tmp_path):
    with pytest.raises(DeviceError, match=f"device `{device}` is not there"):
        merge(text_for("linear", models), tmp_path / "out", device=device)
    assert not list(tmp_path.iterdir())


def test_a_device_that_does_not_exist(models, tmp_path):
    with pytest.raises(DeviceError, match="unknown device `gpu`"):
        merge(text_for("linear", models), tmp_path / "out", device="gpu")


# Spans


@given(count=st.integers(0, 40 * GRAIN), size=st.integers(1, 9))
def test_spans_cover_every_entry_once_with_whole_grains(count, size):
    task = TensorTask(TensorSpec("t", DTYPES["F32"], (count,)), Passthrough(scale=(1.0,)), (), based=False)
    spans = Team([None] * size).spans(task)
    assert len(spans) == size
    assert (spans[0].start, spans[-1].stop) == (0, count)
    assert all(before.stop == after.start for before, after in pairwise(spans))
    assert all(span.start % GRAIN == 0 or span.start == count for span in spans)
    lengths = [-(-(span.stop - span.start) // GRAIN) for span in spans]
    assert max(lengths) - min(lengths) <= 1


# Copies and integers


@pytest.fixture
def plain(tmp_path):
    """Make a model of these tensors and a few float32 weights."""

    def make(name, **extra):
        tensors = random_tensors(llama_shapes(llama_config(layers=1)), 1)
        write_model(tmp_path / name, {**tensors, **extra}, llama_config(layers=1))
        return tmp_path / name

    return make


INTEGERS = {
    "ids": torch.arange(64)[None],
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(10_001, dtype=torch.int16).to(torch.uint8),
    "large": torch.tensor([2**53 + 1, -(2**62)]),
}


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_equal_integers_are_copied_and_never_cast(method, plain, tmp_path):
    models = [plain(name, **INTEGERS) for name in ("base", "a")]
    base = None if method == "linear" else str(models[0])
    watch = merge(
        recipe(method, models, base_model=base, dtype="float16", parameters={"t": 0.5} if method == "slerp" else {}),
        tmp_path / "out",
    )
    found = read_model(tmp_path / "out")
    for name, tensor in INTEGERS.items():
        assert octets(found[name]) == octets(tensor)
    assert sum(watch.bytes) == watch.plan.read_bytes + watch.plan.write_bytes


def test_integers_that_differ_are_an_error(plain, tmp_path):
    changed = INTEGERS["bytes"].clone()
    changed[9_999] += 1
    models = [plain("a", **INTEGERS), plain("b", **{**INTEGERS, "bytes": changed})]
    with pytest.raises(IncompatibleModelsError, match="`bytes` holds uint8 and differs between the models"):
        merge(recipe("linear", models), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_passthrough_copies_the_bytes_of_any_dtype(plain, tmp_path):
    extra = {
        "wide": torch.randn(5000, dtype=torch.float64) * 1e300,
        "negative_zero": torch.tensor([-0.0]),
        "subnormal": torch.tensor([2], dtype=torch.int16).view(torch.bfloat16),
        "float8": torch.arange(100).to(torch.float8_e5m2),
    }
    model = plain("a", **extra, **INTEGERS)
    merge(recipe("passthrough", [model]), tmp_path / "out")
    before, after = read_model(model), read_model(tmp_path / "out")
    assert {name: octets(tensor) for name, tensor in after.items()} == {
        name: octets(tensor) for name, tensor in before.items()
    }


# What is not finite


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("linear", torch.bfloat16),
        ("task_arithmetic", torch.bfloat16),
        ("slerp", torch.float32),
        ("passthrough", torch.float16),
        ("passthrough", torch.float64),
    ],
)
def test_a_broken_input_is_named_and_nothing_is_left(method, dtype, broken, plain, tmp_path):
    weight = torch.zeros(9000, dtype=dtype)
    whole = plain("base", extra=weight)
    weight[8765] = broken
    models = [plain("a", extra=weight)]
    parameters = {"t": 0.5} if method == "slerp" else {}
    with pytest.raises(NonFiniteError, match="of 9000 entries of `extra` are infinite or not a number") as caught:
        merge(recipe(method, models, base_model=str(whole), parameters=parameters), tmp_path / "out")
    assert caught.value.exit_code == 6
    assert str(models[0]) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


@pytest.mark.parametrize(
    ("device", "broken"),
    [
        (None, float("nan")),
        (None, float("inf")),
        ("cpu", float("nan")),
        ("cpu", float("inf")),
    ],
)
def test_an_election_does_not_hide_a_broken_vote(device, broken, plain, tmp_path):
    models = [plain(name, extra=torch.tensor([0.0, value])) for name, value in (("base", 0), ("a", broken), ("b", 1))]
    with pytest.raises(NonFiniteError, match="1 of 2 entries of `extra`"):
        merge(recipe("ties", models[1:], base_model=str(models[0])), tmp_path / "out", device=device)


@pytest.mark.parametrize("out_dtype", ["float16", "float32"])
def test_numbers_that_do_not_fit_the_output_are_named(out_dtype, plain, tmp_path):
    large = {"float16": torch.tensor([70_000.0]), "float32": torch.tensor([1e300], dtype=torch.float64)}[out_dtype]
    model = plain("a", extra=large)
    with pytest.raises(NonFiniteError, match="`extra`"):
        merge(recipe("linear", [model], out_dtype=out_dtype), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Fused experts


STACK = """
merge_method: passthrough
slices:
- sources: [{{model: "{a}", layer_range: [0, 2]}}]
- sources: [{{model: "{b}", layer_range: [1, 2]}}]
"""


@pytest.mark.parametrize("stacked", [False, True])
def test_fused_experts_are_the_merged_parts_end_to_end(stacked, tmp_path):
    config, shapes = mixtral()
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, random_tensors(shapes, seed, torch.bfloat16), config, shards=seed + 1)
    a, b = tmp_path / "a", tmp_path / "b"
    text = STACK.format(a=a, b=b) if stacked else recipe("linear", [(a, {"weight": 0.7}), (b, {"weight": 0.3})])
    watch = merge(text, tmp_path / "parts")
    fused_watch = merge(text, tmp_path / "fused", fuse_experts=True)
    assert stacked or fused_watch.plan.leftovers == watch.plan.leftovers == ()
    parts, fused = read_model(tmp_path / "parts"), read_model(tmp_path / "fused")
    assert stacked or parts.keys() == shapes.keys()
    for layer in range(3 if stacked else 2):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        experts = [
            {w: parts.pop(f"{old}.experts.{expert}.{w}.weight") for w in ("w1", "w2", "w3")} for expert in range(3)
        ]
        both = torch.stack([torch.cat([expert["w1"], expert["w3"]]) for expert in experts])
        assert torch.equal(fused.pop(f"{new}.experts.gate_up_proj"), both)
        assert torch.equal(fused.pop(f"{new}.experts.down_proj"), torch.stack([expert["w2"] for expert in experts]))
        assert torch.equal(fused.pop(f"{new}.gate.weight"), parts.pop(f"{old}.gate.weight"))
    assert fused.keys() == parts.keys()
    assert all(torch.equal(fused[name], parts[name]) for name in parts)


def test_a_tensor_that_is_merged_again_is_read_again():
    """Rows that a sweep has filled are kept for the merge, and no longer: what is in memory may have changed."""
    held = tensor_of("linear", 0, "BF16", shape=(300,))
    with merger(Memory(1, GRAIN, 0), HeldTensors(held.contents), Fused()) as merge:
        assert merge(held.task).any()
        for octets in held.contents.values():
            octets[:] = 0
        assert not merge(held.task).any()
