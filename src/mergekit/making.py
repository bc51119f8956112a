"""How a model in a folder was made, and how to make it again: a class for each tool that writes its own recipes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import yaml

from mergekit.checkpoint.hub import is_local
from mergekit.errors import Findings, VerificationError
from mergekit.fronts import HALF, Filling, bakllama_language, plan_filling, stacking
from mergekit.merging import JobOptions, Progress, carry_out
from mergekit.moe import GateOptions, MoeOptions, plan_moe, read_moe
from mergekit.plan import Plan, PlanOptions, plan_merge
from mergekit.plan.planner import VOCABULARY
from mergekit.raw import Matching, plan_raw
from mergekit.raw.language import read_raw
from mergekit.recipe import ModelRef, Recipe, read_recipe, reference
from mergekit.surgery import Settings, transplant

_T = TypeVar("_T")
_OPTIONAL = (str, int, float, type(None))

RECIPE = "mergekit_config.yml"
"""The file beside the weights that says what was asked for."""


class Maker(ABC):
    """What made a model."""

    @abstractmethod
    def references(self, text: str) -> Sequence[ModelRef]:
        """The models that took part, in the order of the report.

        Parameters:
            text: the recipe.

        Raises:
            RecipeError: it cannot be read.
        """

    @abstractmethod
    def planned(self, text: str, options: PlanOptions) -> Plan:
        """The plan of the weights, made again.

        Raises:
            VerificationError: it takes more than looking at the models.
            MergekitError: it cannot be made any more.
        """

    def tokens_of(self, text: str) -> Sequence[str]:
        """Models on the hub of which the recipe takes only tokens."""
        del text
        return ()

    def make(self, text: str, out: Path, options: JobOptions, progress: Progress | None) -> None:
        """Make the model once more.

        Parameters:
            text: the recipe.
            out: the folder to be made.
            options: of the job.
            progress: is told what happens.

        Raises:
            MergekitError: it cannot be made any more.
        """
        carry_out(lambda: self.planned(text, options.plan), out, options, progress)


def _read(found: tuple[Recipe | None, Findings]) -> Recipe:
    recipe, findings = found
    findings.raise_errors()
    assert recipe is not None, "without errors there is a recipe"
    return recipe


_read_plain = partial(read_recipe, vocabulary=VOCABULARY)


@final
@dataclass(frozen=True, slots=True)
class Merging(Maker):
    """A merge of models."""

    def references(self, text: str) -> Sequence[ModelRef]:
        """As the recipe names them."""
        return _read(_read_plain(text, file=RECIPE)).references()

    def tokens_of(self, text: str) -> Sequence[str]:
        """Those that the tokenizer setting names."""
        setting = _read(_read_plain(text, file=RECIPE)).tokenizer
        named = [ref.model for ref in setting.references()] if setting else []
        return [str(address) for address in named if not is_local(address)]

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """As for any merge."""
        return plan_merge(text, file=RECIPE, options=options)


@final
@dataclass(frozen=True, slots=True)
class MergingRaw(Maker):
    """A merge of raw checkpoints.

    Parameters:
        matching: how tensors were matched.
    """

    matching: Matching

    def references(self, text: str) -> Sequence[ModelRef]:
        """As the recipe names them."""
        return _read(read_raw(text, file=RECIPE)).references()

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """As for any merge of raw checkpoints."""
        return plan_raw(text, file=RECIPE, options=options, matching=self.matching)


@final
@dataclass(frozen=True, slots=True)
class Mixing(Maker):
    """A mixture of experts.

    Parameters:
        moe: how it was built.
    """

    moe: MoeOptions

    def references(self, text: str) -> Sequence[ModelRef]:
        """The base, then the experts."""
        recipe, findings = read_moe(text, file=RECIPE)
        return _read((recipe.recipe if recipe else None, findings)).references()

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """As for any mixture whose routers need no model to be run."""
        recipe, findings = read_moe(text, file=RECIPE)
        findings.raise_errors()
        if recipe is not None and recipe.gate_mode not in ("random", "uniform_random", "cheap_embed"):
            raise VerificationError("its routers are made by running the base, which only `mergekit reproduce` does")
        return self._planned(text, options)

    def make(self, text: str, out: Path, options: JobOptions, progress: Progress | None) -> None:
        """Also run the base."""
        carry_out(lambda: self._planned(text, options.plan), out, options, progress)

    def _planned(self, text: str, options: PlanOptions) -> Plan:
        return plan_moe(text, file=RECIPE, options=options, moe=self.moe).plan


@final
@dataclass(frozen=True, slots=True)
class Transplanting(Maker):
    """A model with another one's tokenizer.

    Parameters:
        settings: how rows were found.
        chat_template: as asked for.
    """

    settings: Settings
    chat_template: str

    def references(self, text: str) -> Sequence[ModelRef]:
        """The model, then the donor."""
        return [reference(name) for name in _patient_and_donor(text)]

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """Never."""
        del text, options
        raise VerificationError("rows of its vocabulary were approximated, which only `mergekit reproduce` does again")

    def make(self, text: str, out: Path, options: JobOptions, progress: Progress | None) -> None:
        """Also approximate rows again."""
        model, donor = _patient_and_donor(text)
        transplant(
            model,
            donor,
            out,
            settings=self.settings,
            options=options,
            chat_template=self.chat_template,
            progress=progress,
        )


def _patient_and_donor(text: str) -> tuple[str, str]:
    told = yaml.safe_load(text)["tokensurgeon"]
    return str(told["model"]), str(told["donor"])


@final
@dataclass(frozen=True, slots=True)
class FillingIn(Maker):
    """A model with tensors of a part of it.

    Parameters:
        filling: how names were matched.
    """

    filling: Filling

    def references(self, text: str) -> Sequence[ModelRef]:
        """The whole, then the part."""
        return _read(_read_plain(text, file=RECIPE)).references()

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """As for any filling."""
        whole, part = map(str, self.references(text))
        return plan_filling(whole, part, self.filling, options)


@final
@dataclass(frozen=True, slots=True)
class Stacking(Maker):
    """Layers stacked as a config of bakllama says.

    Parameters:
        dtype: of the output, or None.
    """

    dtype: str | None

    def references(self, text: str) -> Sequence[ModelRef]:
        """As the config names them."""
        language = bakllama_language(self.dtype)
        return _read(read_recipe(text, file=RECIPE, vocabulary=VOCABULARY, language=language)).references()

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """As for any merge."""
        return plan_merge(text, file=RECIPE, options=stacking(options, self.dtype))


@final
@dataclass(frozen=True, slots=True)
class Piping(Maker):
    """A pipeline, of which this is one merge; the others need not be there any more."""

    def references(self, text: str) -> Sequence[ModelRef]:
        """Never."""
        del text
        raise _one_of_several()

    def planned(self, text: str, options: PlanOptions) -> Plan:
        """Never."""
        del text, options
        raise _one_of_several()


def _one_of_several() -> VerificationError:
    return VerificationError("it is a merge of a pipeline", hint=f"`mergekit multi {RECIPE} --out-path FOLDER`")


def _made(kind: type[_T], told: Mapping[str, Any]) -> _T:
    """Options as a report tells them, which may have been edited."""
    usual = kind()
    for name, value in told.items():
        default = getattr(usual, name, kind)
        if not isinstance(value, _OPTIONAL if default is None else type(default)):
            raise TypeError(f"`{name}` is {value!r}")
    return kind(**told)


def maker_of(recorded: Mapping[str, Any]) -> Maker:
    """What made a model.

    Parameters:
        recorded: the options in its report.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: they are not what any tool writes.
    """
    if "raw" in recorded:
        return MergingRaw(Matching(**recorded["raw"]))
    if "moe" in recorded:
        told = dict(recorded["moe"])
        moe = _made(MoeOptions, told.pop("options"))
        return Mixing(replace(moe, gates=_made(GateOptions, told)))
    if "tokensurgeon" in recorded:
        told = dict(recorded["tokensurgeon"])
        template = told.pop("chat_template", "donor")
        return Transplanting(_made(Settings, told), str(template))
    if "filling" in recorded:
        return FillingIn(_made(Filling, recorded["filling"]))
    if "bakllama" in recorded:
        dtype = recorded["bakllama"]["dtype"]
        if dtype not in (None, HALF):
            raise ValueError(f"`dtype` is {dtype!r}")
        return Stacking(dtype)
    return Piping() if "multi" in recorded else Merging()
