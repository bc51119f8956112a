"""A merge that is to be judged: in memory as a model of transformers, or as a folder in memory."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

from mergekit.api.arrays import TorchTensors
from mergekit.api.memory import merger
from mergekit.api.options import MergeOptions, carrying_out, device
from mergekit.checkpoint.companions import TOKENIZER, is_like
from mergekit.errors import UnsupportedError
from mergekit.evolution.harness import Harness, Tasks
from mergekit.evolution.objectives import Measured
from mergekit.evolution.shared import Shared
from mergekit.merging import carry_out, inputs_of
from mergekit.plan import Plan, plan_merge
from mergekit.plan.memory import physical_memory

SHARED_MEMORY = Path("/dev/shm")
_BYTES = 256  # tokens of models over bytes


@dataclass(frozen=True, slots=True)
class Loading:
    """How candidates are merged and put to work.

    Parameters:
        merge: options of the merge.
        device: where models run, as torch names it; None for the first accelerator, or the CPU.
        batch: windows or examples that are looked at together.
        trust_remote_code: whether transformers may run code of the models.
        bits: 4 or 8 to quantise models with bitsandbytes, 16 or 32 for plain weights; None for what the device likes.
        threads: of torch; None for its own choice.
        tasks: how tasks of lm-eval are run.
        directions: share of the machine's memory for what candidates add to the base before it is scaled, which is
            worth keeping where they differ in the scale above all; 0 to keep none.
    """

    merge: MergeOptions = field(default_factory=MergeOptions)
    device: str | None = None
    batch: int = 8
    trust_remote_code: bool = False
    bits: int | None = None
    threads: int | None = None
    tasks: Tasks = field(default_factory=Tasks)
    directions: float = 0.0


@final
class Bench:
    """What stays between candidates: the model that is filled anew, the tokenizer, tasks, and what merges share."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.harness = Harness(loading.tasks)
        self.shared = Shared(int(physical_memory() * loading.directions))
        self._config = ""
        self._model: Any = None
        self._tokenizers: dict[str, Any] = {}

    @contextmanager
    def candidate(self, recipe: str) -> Iterator[Candidate]:
        """A candidate, whose folder is gone at the end."""
        candidate = Candidate(recipe, self)
        try:
            yield candidate
        finally:
            candidate.close()

    def model(self, candidate: Candidate) -> Any:
        """The model of a candidate; it stays one until the next candidate's is asked for."""
        config = candidate.plan.texts["config.json"]
        if self._model is None or config != self._config or not _filled(self._model, candidate):
            self._model = None  # two would not fit where one does
            self._model = _loaded(candidate.folder, self.loading)
            self._config = config
        return self._model

    def tokenizer(self, plan: Plan) -> Any:
        """The tokenizer of a merge, or None if it has none."""
        files = {name: str(file) for name, file in plan.copies.items() if is_like(Path(name).name, TOKENIZER)}
        texts = {name: text for name, text in plan.texts.items() if is_like(name, TOKENIZER)}
        if not files and not texts:
            return None
        key = repr((sorted(files.items()), sorted(texts.items())))
        if key not in self._tokenizers:
            self._tokenizers = {key: _loaded_tokenizer(plan, self.loading)}
        return self._tokenizers[key]


@final
class Candidate:
    """A merge that is to be judged; each of its forms is made when it is first looked at.

    Parameters:
        recipe: its text.
        bench: what stays between candidates.
    """

    def __init__(self, recipe: str, bench: Bench) -> None:
        self.recipe = recipe
        self._bench = bench
        self._room: Path | None = None

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def plan(self) -> Plan:
        """What its merge does."""
        return plan_merge(self.recipe, options=carrying_out(self._bench.loading.merge).plan)

    @cached_property
    def folder(self) -> Path:
        """The model as a folder, in memory if there is room; it is gone when the candidate is judged."""
        self._room = memory_folder(self.plan.write_bytes)
        out = self._room / "model"
        carry_out(lambda: self.plan, out, carrying_out(self._bench.loading.merge))
        return out

    @cached_property
    def model(self) -> Any:
        """The model of transformers, ready to be called."""
        return self._bench.model(self)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, or None if the merge has none."""
        return self._bench.tokenizer(self.plan)

    @property
    def batch(self) -> int:
        """Windows or examples that are looked at together."""
        return self._bench.loading.batch

    @property
    def longest(self) -> int:
        """Tokens that the model can see together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def tokens(self, text: bytes) -> Sequence[int]:
        """The tokens of a text; bytes for a model over 256 of them without a tokenizer."""
        if self.tokenizer is not None:
            ids: list[int] = self.tokenizer(text.decode("utf-8", "replace"), add_special_tokens=False)["input_ids"]
            return ids
        if getattr(self.model.config, "vocab_size", 0) != _BYTES:
            raise UnsupportedError("the merge has no tokenizer", expected="tokenizer files beside the first model")
        return list(text)

    def run_task(self, name: str, metric: str, share: float) -> Measured:
        """A metric of a task of lm-eval."""
        return self._bench.harness.run(name, metric, share, self.model, self.tokenizer, self.batch)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The merged tensors by name, one after the other."""
        from mergekit.engine import open_device

        library, compute = TorchTensors(), open_device(device(self._bench.loading.merge))
        shared = self._bench.shared
        with inputs_of(self.plan) as files, merger(self.plan.memory, files, compute, shared.recall) as merge:
            for task in self.plan.tasks:
                yield task.out.name, library.array(shared.merged(task, merge), task.out.dtype, task.out.shape)

    def close(self) -> None:
        """Remove the folder, if it was made."""
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)


def _filled(model: Any, candidate: Candidate) -> bool:
    """Copy merged tensors into a model; False if they are not exactly the model's, which is then half filled."""
    import torch

    if candidate._bench.loading.bits in (4, 8):
        return False
    own, reached = model.state_dict(), set()
    with torch.no_grad():
        for name, tensor in candidate.tensors():
            if name not in own or own[name].shape != tensor.shape:
                return False
            own[name].copy_(tensor)
            reached.add(own[name].data_ptr())
    return all(tensor.data_ptr() in reached for tensor in own.values())


def _loaded(folder: Path, loading: Loading) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    _without_bars()
    if loading.threads is not None:
        torch.set_num_threads(loading.threads)
    place = torch.device(loading.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    if loading.bits in (4, 8):
        settings |= {"quantization_config": _quantised(loading.bits), "device_map": {"": place}}
    bits = loading.bits or (32 if place.type == "cpu" else 16)  # CPUs multiply float32 faster
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    return (model if loading.bits in (4, 8) else model.to(place)).eval()


def _without_bars() -> None:
    from transformers.utils import logging

    silence: Any = logging.disable_progress_bar
    silence()


def _quantised(bits: int) -> Any:
    import torch
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    if bits == 8:
        return make(load_in_8bit=True)
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _loaded_tokenizer(plan: Plan, loading: Loading) -> Any:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, file in plan.copies.items():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        for name, text in plan.texts.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=loading.trust_remote_code)


def memory_folder(nbytes: int) -> Path:
    """A new folder in memory if so many bytes fit there twice, else on the disk.

    Its name says who made it: :func:`sweep_memory` removes those of processes that were killed.
    """
    room = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    parent = SHARED_MEMORY if room and shutil.disk_usage(SHARED_MEMORY).free > 2 * nbytes else None
    return Path(tempfile.mkdtemp(prefix=f"{_owner()}-{os.getpid()}-", dir=parent))


def _owner() -> str:
    return f"mergekit-candidate-{socket.gethostname()}"


def sweep_memory() -> None:
    """Remove the folders of processes of this machine that are no more."""
    for parent in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for folder in parent.glob(f"{_owner()}-*"):
            number = folder.name.removeprefix(f"{_owner()}-").partition("-")[0]
            if number.isdigit() and not _runs(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
