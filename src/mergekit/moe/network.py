"""The models of a recipe as transformers runs them; nothing of it is imported before it is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergekit.checkpoint.hub import Hub
from mergekit.errors import DeviceError, UnsupportedError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import Model, PlanOptions


@dataclass(frozen=True, slots=True)
class GateOptions:
    """How the model that makes routers is run.

    Parameters:
        device: as torch names it; None for the CPU.
        bits: 4 or 8 to load it quantised by bitsandbytes; None for bfloat16.
        keep: whether hidden states are kept on the disk, and taken from there.
        hub: how models are taken from the hub.
    """

    device: str | None = None
    bits: int | None = None
    keep: bool = True
    hub: Hub = field(default_factory=Hub)


def require_torch() -> Any:
    """The module torch.

    Raises:
        UnsupportedError: it is not installed, or transformers is not.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"gate modes of hidden states run the base model, and {' and '.join(missing)} is not installed",
            expected="`gate_mode: cheap_embed`, or one of the random ones, which need neither",
            hint='pip install "mergekit[torch]" transformers',
        )
    import torch

    return torch


@contextmanager
def running(model: Model, options: GateOptions) -> Iterator[Any]:
    """A model, loaded, for as long as nothing is learnt.

    Parameters:
        model: the model.
        options: how it is run.

    Raises:
        UnsupportedError: transformers, torch or bitsandbytes is not installed.
        DeviceError: the device is not there.
    """
    torch = require_torch()
    with folder_of(model, options.hub) as folder, torch.inference_mode():
        yield _loaded(folder, options)


def layers_of(network: Any) -> Any:
    """The layers of a network's decoder."""
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network.model
    return decoder.layers


def _loaded(folder: Path, options: GateOptions) -> Any:
    import torch

    transformers: Any = import_module("transformers")
    more: dict[str, Any] = {"dtype": torch.bfloat16}
    if options.bits:
        if find_spec("bitsandbytes") is None:
            what = f"the base is to be loaded in {options.bits} bits, and bitsandbytes is not installed"
            raise UnsupportedError(what, hint="pip install bitsandbytes")
        bits = {f"load_in_{options.bits}bit": True}
        more |= {"quantization_config": transformers.BitsAndBytesConfig(**bits), "device_map": options.device or "auto"}
    with quiet_transformers():
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **more
        )
    return network.eval() if options.bits else network.eval().to(device_of(options.device))


def device_of(name: str | None) -> str:
    """A device of torch by the name that users give it.

    Raises:
        DeviceError: it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name or "cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device `{name}` is not there", hint="no `--device`, for the CPU") from error
    return name or "cpu"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers."""
    logging: Any = import_module("transformers.utils.logging")
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


@contextmanager
def folder_of(model: Model, hub: Hub) -> Iterator[Path]:
    """A folder from which transformers loads a model: its own, or one that is made for the time being.

    Adapters are applied, blocks of GGUF files unpacked, and what is on the hub is fetched.

    Parameters:
        model: the model.
        hub: how models are taken from the hub.
    """
    checkpoint = model.checkpoint
    if model.adapter is None and not checkpoint.remote and checkpoint.root.is_dir() and not checkpoint.texts:
        yield checkpoint.root
        return
    with TemporaryDirectory(prefix="mergekit-moe-") as place:
        out = Path(place) / "model"
        recipe = {"merge_method": "passthrough", "models": [{"model": model.ref.written()}]}
        merge_recipe(json.dumps(recipe), out, options=JobOptions(PlanOptions(hub=hub)))
        yield out
