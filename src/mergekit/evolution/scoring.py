"""What candidates are scored by, as configurations and command lines say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.evolution.objectives import CallObjective, CommandObjective, Objective, TaskObjective, TextObjective
from mergekit.recipe import coerce
from mergekit.recipe.forms import Either, Flag, Form, Json, Reading, Text, Whole, is_table, scalar
from mergekit.recipe.nodes import Node
from mergekit.recipe.records import Fields, Key, Record

METRIC = "acc,none"
"""The metric of a task, if none is given."""

_KINDS = ("perplexity", "bits_per_byte", "task", "call", "command")


@dataclass(frozen=True, slots=True)
class _Number(Form[float]):
    noun: str

    def _read(self, node: Node, reading: Reading) -> float | None:
        try:
            return float(coerce(scalar(node), "float"))
        except ValueError:
            return self.refuse(node, reading)

    def _schema(self) -> Json:
        return {"type": "number"}


def some(text: str) -> str:
    """A text that is not empty."""
    if not text.strip():
        raise ValueError("the text is empty")
    return text


def _build_task(fields: Fields) -> tuple[Objective, Node] | None:
    if fields.broken("name", "weight", "metric"):
        return None
    weight, metric = fields.optional("weight"), fields.optional("metric") or METRIC
    return TaskObjective(fields.values["name"], 1.0 if weight is None else weight, metric=metric), fields.node


def _build_objective(fields: Fields) -> tuple[Objective, Node] | None:
    if fields.broken(*fields.values):
        return None
    given = [kind for kind in _KINDS if kind in fields.values]
    if len(given) != 1:
        written = " and ".join(f"`{kind}`" for kind in given) or "nothing to score by"
        fields.error(f"an objective has {written}", f"exactly one of {', '.join(f'`{kind}`' for kind in _KINDS)}")
        return None
    kind, own = given[0], _OWN[given[0]]
    for name in fields.values.keys() - {"weight", "name", kind, *own}:
        fields.error(f"`{name}` does not belong to `{kind}`", f"one of {', '.join(own)}", path=f"{fields.path}.{name}")
    return objective_of(kind, fields.values[kind], fields.values), fields.node


_OWN: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("bytes", "window"),
    "bits_per_byte": ("bytes", "window"),
    "task": ("metric",),
    "call": ("maximize",),
    "command": ("maximize",),
}


def objective_of(kind: str, what: str, settings: Mapping[str, Any]) -> Objective:
    """What candidates are scored by.

    Parameters:
        kind: one of `perplexity`, `bits_per_byte`, `task`, `call` and `command`.
        what: the file, the task's name, the function or the shell command.
        settings: `name`, `weight` and what else belongs to the kind, as configurations spell it.
    """
    weight = settings.get("weight", 1.0)
    if kind == "task":
        return TaskObjective(what, weight, metric=settings.get("metric", METRIC))
    if kind in ("call", "command"):
        kind_of = CallObjective if kind == "call" else CommandObjective
        return kind_of(settings.get("name", what), weight, what, settings.get("maximize", True))
    bytewise, window = kind == "bits_per_byte", settings.get("window", 512)
    name = settings.get("name", f"{kind} {Path(what).stem}")
    return TextObjective(name, weight, Path(what), bytewise, settings.get("bytes"), window)


_WEIGHT = Key("weight", _Number("a number"), "factor in the sum of all objectives")
TASK: Form[Any] = Either(
    "a task",
    Record(
        "a task",
        (
            Key("name", Text("the name of a task", some), "task or group of lm-eval", required=True),
            _WEIGHT,
            Key("metric", Text("a metric", some), "metric with its filter; `acc,none` if it is not given"),
        ),
        _build_task,
    ),
    Text("the name of a task", some),
    is_table,
)


@dataclass(frozen=True, slots=True)
class Task(Form[tuple[Objective, Node]]):
    """A task of lm-eval: its name, or a table."""

    noun: str = "a task"

    def _expected(self) -> str:
        return TASK.expected

    def _parts(self) -> tuple[Form[Any], ...]:
        return (TASK,)

    def _read(self, node: Node, reading: Reading) -> tuple[Objective, Node] | None:
        found = TASK.read(node, reading)
        return (TaskObjective(found, 1.0, metric=METRIC), node) if isinstance(found, str) else found

    def _schema(self) -> Json:
        return TASK.schema()


OBJECTIVE = Record(
    "an objective",
    (
        Key("perplexity", Text("a file", some), "file with text, whose perplexity is kept low"),
        Key("bits_per_byte", Text("a file", some), "the same in bits per byte, which compares across tokenizers"),
        Key("task", Text("the name of a task", some), "task or group of lm-eval"),
        Key("call", Text("a function", some, "`module:function` or `FILE.py:function`"), "function that scores"),
        Key("command", Text("a command", some), "shell command that gets the model's folder and prints a number"),
        Key("name", Text("a name", some), "what the history calls it"),
        _WEIGHT,
        Key("metric", Text("a metric", some), "metric of the task with its filter"),
        Key("maximize", Flag(), "whether more is better, for `call` and `command`; true if it is not given"),
        Key("bytes", Whole("a number of bytes (from 1)", 1), "how much of a text is read"),
        Key("window", Whole("a number of tokens (from 2)", 2), "tokens that the model sees together; 512"),
    ),
    _build_objective,
)


def objective_from(text: str, others: Mapping[str, Any] | None = None) -> Objective:
    """What candidates are scored by, as command lines have it: ``KIND:WHAT``.

    Parameters:
        text: what is given.
        others: further settings, as :func:`objective_of` has them.

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> objective_from("perplexity:de.txt").name, objective_from("task:my_task:exact_match,none").metric
        ('perplexity de', 'exact_match,none')
        >>> objective_from("-command:./loss.sh").more
        False
    """
    kind, _, what = text.partition(":")
    settings = {**(others or {}), "maximize": not kind.startswith("-")}
    if kind in ("-call", "-command"):
        kind = kind[1:]
    if kind not in _KINDS or not what:
        raise ValueError(f"`{text}` is not `KIND:WHAT`, with a kind that is one of {', '.join(_KINDS)}")
    if kind == "task":
        what, _, metric = what.partition(":")
        settings["metric"] = metric or METRIC
    return objective_of(kind, what, settings)
