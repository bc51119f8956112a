"""On a real accelerator; not run unless asked for: ``-m needs_accelerator``. See docs/guides/accelerators.md."""

import numpy as np
import pytest
import torch
from device_bounds import FORMATS, PAGE, difference, stated
from held_tasks import tensor_of
from tiny_checkpoints import fine_tuned, llama_config, llama_shapes, random_tensors, read_model, recipe, write_model

from mergekit import MergeOptions, merge_models
from mergekit.engine import accelerator, open_device
from mergekit.engine.hardware import accelerator as found_accelerator
from mergekit.engine.hardware import every, kind_of
from mergekit.kernels import GRAIN
from mergekit.kernels.arrays import host, noise
from mergekit.kernels.streams import stream_keys
from mergekit.methods import METHODS

pytestmark = pytest.mark.needs_accelerator

LARGE = (512 * GRAIN,)


@pytest.fixture(scope="module")
def device():
    found = found_accelerator()
    assert found, "torch can use no accelerator here"
    return open_device(found)


@pytest.mark.parametrize("raw_format", FORMATS)
@pytest.mark.parametrize("name", METHODS)
def test_the_device_keeps_the_stated_bound(name, raw_format, device):
    bound = stated(PAGE.read_text("utf-8"))[name, raw_format]
    assert difference(name, raw_format, device) <= bound


@pytest.mark.parametrize("name", METHODS)
def test_stripes_and_threads_change_no_byte(name, device):
    tensor = tensor_of(name, 1, "BF16", shape=(40, 3 * GRAIN))
    whole = tensor.merged(device, 120 * GRAIN).tobytes()
    for stripe, workers in [(GRAIN, 1), (3 * GRAIN, 4), (16 * GRAIN, 2)]:
        assert tensor.merged(device, stripe, workers).tobytes() == whole
    assert tensor.merged(open_device(device.devices[0], keeping=True), 3 * GRAIN, 2).tobytes() == whole


def test_noise_is_that_of_the_cpu(device):
    keys = stream_keys(7, "tensor", 1)
    for start in (0, 12345, (1 << 32) - 500):
        on_device = noise(torch.zeros(1000, device=device.devices[0]), start, keys)
        np.testing.assert_array_equal(host(on_device), noise(np.zeros(1000, np.float32), start, keys))


def test_a_merge_of_files_equals_that_of_the_cpu(tmp_path, device):
    config = llama_config(layers=2, dtype=torch.bfloat16)
    base = random_tensors(llama_shapes(config), 0)
    for seed, name in enumerate(("base", "a", "b")):
        tensors = fine_tuned(base, seed) if seed else base
        write_model(tmp_path / name, {key: each.to(torch.bfloat16) for key, each in tensors.items()}, config)
    entries = [(tmp_path / name, {"weight": 0.5, "density": 0.5}) for name in "ab"]
    text = recipe("dare_ties", entries, base_model=str(tmp_path / "base"), out_dtype="float32")
    merge_models(text, tmp_path / "cpu")
    kind = kind_of(device.devices[0])
    options = MergeOptions(device=kind, multi_gpu=True, read_to_gpu=True)
    report = merge_models(text, tmp_path / "gpu", options=options)
    assert report["device"]["name"] == f"torch {kind}"
    found, expected = read_model(tmp_path / "gpu"), read_model(tmp_path / "cpu")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6 * float(tensor.abs().max()))


def test_copies_are_pinned_and_overlap_mathematics(device):
    name = device.devices[0]
    if kind_of(name) != "cuda":
        pytest.skip("the profiler shows streams of CUDA")
    room = device.bench().room(1 << 20)
    assert torch.from_numpy(room).is_pinned()
    tensor = tensor_of("ties", 1, "BF16", shape=LARGE)
    tensor.merged(device, 64 * GRAIN)  # libraries are loaded
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        tensor.merged(device, 64 * GRAIN, 4)
        torch.cuda.synchronize()
    spans = [(each.name, each.time_range.start, each.time_range.end) for each in profile.events()
             if each.device_type == torch.autograd.DeviceType.CUDA]  # fmt: skip
    copies = [span for span in spans if "memcpy htod" in span[0].lower()]
    kernels = [span for span in spans if "mem" not in span[0].lower()]
    assert copies
    assert any(start < stop_other and start_other < stop
               for _, start, stop in copies for _, start_other, stop_other in kernels)  # fmt: skip


def test_a_device_that_runs_out_of_memory(device):
    name = device.devices[0]
    if kind_of(name) != "cuda":
        pytest.skip("only CUDA can be given a limit")
    tensor = tensor_of("ties", 1, "BF16", shape=(4096 * GRAIN,))
    expected = tensor.merged(device, 64 * GRAIN).tobytes()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.device(name)).total_memory
    released = []
    release = accelerator._TorchWorkbench.release
    accelerator._TorchWorkbench.release = lambda self: (released.append(self), release(self))
    try:
        torch.cuda.set_per_process_memory_fraction((256 << 20) / total)
        assert tensor.merged(device, 4096 * GRAIN, 1).tobytes() == expected
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        accelerator._TorchWorkbench.release = release
    assert released, "the limit was never reached"


def test_all_devices_give_the_bytes_of_one(device):
    kind = kind_of(device.devices[0])
    if len(every(kind)) < 2:
        pytest.skip("there is only one")
    tensor = tensor_of("ties", 1, "BF16", shape=LARGE)
    several = open_device(f"{kind}:*")
    assert len(several.devices) > 1
    assert tensor.merged(several, 16 * GRAIN, 8).tobytes() == tensor.merged(device, 16 * GRAIN, 8).tobytes()
