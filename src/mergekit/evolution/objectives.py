"""What candidates are scored by: text, tasks of lm-eval, functions and commands."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from mergekit.errors import MethodError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mergekit.evolution.candidate import Candidate


@dataclass(frozen=True, slots=True)
class Measured:
    """What an objective found.

    Parameters:
        value: of the candidate.
        more: whether a larger value is better.
    """

    value: float
    more: bool


@dataclass(frozen=True, slots=True)
class Objective(ABC):
    """Something that a candidate is scored by.

    Parameters:
        name: what the history calls it.
        weight: factor in the sum of all objectives.
    """

    name: str
    weight: float

    runs_code: ClassVar[bool] = False
    """Whether it runs what the configuration names."""
    divisible: ClassVar[bool] = True
    """Whether a part of it can be measured for a part of the time."""

    def check(self) -> None:
        """Find out what can be found out before any candidate is there.

        Raises:
            MergekitError: it could not be measured.
        """
        return

    @abstractmethod
    def measure(self, candidate: Candidate, share: float) -> Measured:
        """Look at a candidate.

        Parameters:
            candidate: the merge.
            share: how much of all text or examples to use, above 0 to 1.
        """

    def gain(self, measured: Measured) -> float:
        """What it adds to the score, where more is better. A negative weight says itself that less is."""
        return self.weight * measured.value * (1.0 if measured.more or self.weight < 0 else -1.0)


@final
@dataclass(frozen=True, slots=True)
class TextObjective(Objective):
    """How well a candidate foretells a text: its perplexity, or the bits that it needs per byte.

    Parameters:
        file: the text.
        bytewise: bits per byte instead of perplexity.
        most: bytes of the text that are read, from its beginning; None for all.
        window: tokens that the model sees together.
    """

    file: Path
    bytewise: bool
    most: int | None
    window: int

    def check(self) -> None:
        """Whether the text is there."""
        if not self._bytes():
            raise UnsupportedError(f"{self.file} is empty", expected="a text")

    def _bytes(self) -> bytes:
        try:
            with self.file.expanduser().open("rb") as stream:
                return stream.read(-1 if self.most is None else self.most)
        except OSError as error:
            raise UnsupportedError(f"{self.file} cannot be read: {error.strerror}", expected="a text file") from error

    def measure(self, candidate: Candidate, share: float) -> Measured:
        """Mean over windows of equal length from all over the text."""
        import torch

        text = self._bytes()
        ids = torch.tensor(candidate.tokens(text))
        windows = _windows(ids, min(self.window, candidate.longest), share)
        bits = mean_bits(candidate.model, windows, candidate.batch)
        return Measured(bits * len(ids) / len(text) if self.bytewise else 2.0**bits, False)


def _windows(ids: Any, size: int, share: float) -> Any:
    """Windows of a text as rows, evenly spread over it if only a share is wanted."""
    if len(ids) < 2:
        raise UnsupportedError("the text has fewer than two tokens")
    size = min(size, len(ids))
    count = len(ids) // size
    rows = ids[: count * size].view(count, size)
    wanted = max(1, round(count * share))
    return rows[[index * count // wanted for index in range(wanted)]]


def mean_bits(model: Any, windows: Any, batch: int) -> float:
    """Bits that a model needs per token of some windows, without the first of each.

    Parameters:
        model: of transformers.
        windows: ids of tokens, shape (windows, tokens).
        batch: windows that are looked at together.
    """
    import torch

    total = 0.0
    entropy = torch.nn.functional.cross_entropy
    with torch.inference_mode():
        for rows in windows.split(batch):
            rows = rows.to(model.device)
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
            total += entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return total / int(windows[:, 1:].numel()) / math.log(2)


@final
@dataclass(frozen=True, slots=True)
class TaskObjective(Objective):
    """A metric of a task of lm-eval, in the direction that the task declares.

    Parameters:
        metric: with its filter, ``acc,none``.
    """

    metric: str

    def measure(self, candidate: Candidate, share: float) -> Measured:
        """Run the task."""
        return candidate.run_task(self.name, self.metric, share)


@final
@dataclass(frozen=True, slots=True)
class CallObjective(Objective):
    """What a function of the user's returns for a :class:`~mergekit.evolution.candidate.Candidate`.

    Parameters:
        function: ``module:function`` or ``FILE.py:function``.
        more: whether a larger value is better.
    """

    function: str
    more: bool

    runs_code: ClassVar[bool] = True
    divisible: ClassVar[bool] = False

    def check(self) -> None:
        """Whether the function is there."""
        load_function(self.function)

    def measure(self, candidate: Candidate, share: float) -> Measured:
        """Call the function."""
        del share
        return Measured(float(load_function(self.function)(candidate)), self.more)


def load_function(name: str) -> Callable[[Candidate], Any]:
    """The function that ``module:function`` or ``FILE.py:function`` names; its code is run.

    Raises:
        MethodError: there is none, or its code fails.

    Example:
        >>> load_function("math:sqrt")(4)
        2.0
    """
    module, _, attribute = name.rpartition(":")
    if not module:
        raise MethodError(f"`{name}` names no function", expected="`module:function` or `FILE.py:function`")
    try:
        with _working_folder_on_path():
            found = getattr(
                _from_file(module) if module.endswith(".py") else importlib.import_module(module), attribute
            )
    except Exception as error:
        raise MethodError(f"`{name}` cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise MethodError(f"`{name}` is no function")
    function: Callable[[Candidate], Any] = found
    return function


def _from_file(path: str) -> Any:
    file = Path(path).expanduser().resolve()
    name = f"mergekit_objective_{file.stem}_{zlib.crc32(os.fsencode(file)):08x}"  # files of one name are two modules
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where its dataclasses look for themselves
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


@final
@dataclass(frozen=True, slots=True)
class CommandObjective(Objective):
    """The number that a shell command prints last; the command gets the model's folder as its last argument.

    Parameters:
        command: for ``sh``.
        more: whether a larger value is better.
    """

    command: str
    more: bool

    runs_code: ClassVar[bool] = True
    divisible: ClassVar[bool] = False

    def measure(self, candidate: Candidate, share: float) -> Measured:
        """Run the command."""
        del share
        code, printed, errors = _run(["sh", "-c", f'{self.command} "$@"', "sh", str(candidate.folder)])
        words, said = printed.split(), (errors.strip().splitlines() or [""])[-1]
        if code:
            raise MethodError(f"`{self.command}` ended with exit code {code}: {said}")
        try:
            return Measured(float(words[-1]), self.more)
        except (IndexError, ValueError):
            shown = words[-1] if words else "nothing"
            raise MethodError(f"`{self.command}` printed {shown}", expected="a number as the last word") from None


def _run(line: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command; it ends, with all that it has started, if this process is stopped."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            printed, errors = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, printed, errors
