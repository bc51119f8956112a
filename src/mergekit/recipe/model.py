"""The recipe as the rest of the program sees it: checked, typed, with the places of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mergekit.errors import Place
from mergekit.recipe.references import ModelRef
from mergekit.recipe.settings import Setting


@dataclass(frozen=True, slots=True)
class Parameters:
    """The settings of one ``parameters:`` mapping.

    Parameters:
        settings: parameter name to setting, in document order.
        path: path of the mapping, ``models[1].parameters``, whether it is written or not.
    """

    settings: Mapping[str, Setting]
    path: str


@dataclass(frozen=True, slots=True)
class Source:
    """A model that takes part in an output slice.

    Parameters:
        model: the model.
        layers: the layers that are used, or None for all of them (an entry of ``models:``).
        parameters: settings for this model only.
        path: ``models[0]`` or ``slices[0].sources[1]``.
    """

    model: ModelRef
    layers: range | None
    parameters: Parameters
    path: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of output layers and the models it is made from, all with the same number of layers.

    Parameters:
        sources: the models with their layers, at least one.
        base_model: base for this slice instead of the recipe's, or None.
        parameters: settings for this slice.
        path: ``slices[0]``.
    """

    sources: tuple[Source, ...]
    base_model: ModelRef | None
    parameters: Parameters
    path: str


@dataclass(frozen=True, slots=True)
class Module:
    """What is merged into one module of a model with several; exactly one of `models` and `slices` is not empty.

    Parameters:
        name: the module's name.
        models: whole models.
        slices: output slices.
        parameters: settings for this module.
        path: ``modules.text_decoder``.
    """

    name: str
    models: tuple[Source, ...]
    slices: tuple[Slice, ...]
    parameters: Parameters
    path: str


@dataclass(frozen=True, slots=True)
class SameToken:
    """A token's embedding is taken from the same token of `model`."""

    model: ModelRef


@dataclass(frozen=True, slots=True)
class OtherToken:
    """A token's embedding is taken from another token of `model`, given as text or as an id."""

    model: ModelRef
    token: str | int


@dataclass(frozen=True, slots=True)
class ZeroRow:
    """A token's embedding is all zeros."""


TokenSource = SameToken | OtherToken | ZeroRow
TokenizerSource = ModelRef | Literal["union", "base"]


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """What is said about one token of the output.

    Parameters:
        source: where its embedding comes from, or None to decide as for any other token.
        force: give models that know the token the source's embedding too.
        path: ``tokenizer.tokens.<|im_start|>``.
    """

    source: TokenSource | None
    force: bool
    path: str


@dataclass(frozen=True, slots=True)
class TokenizerSetting:
    """Which tokenizer the output gets.

    Parameters:
        source: ``"union"`` of all models' vocabularies, ``"base"`` for the base model's, or a model.
        tokens: text of a token to what is said about it.
        pad_to_multiple_of: the vocabulary is padded to a multiple of so many rows, or None.
        path: ``tokenizer``, or ``tokenizer_source`` for the older spelling.
    """

    source: TokenizerSource
    tokens: Mapping[str, TokenEntry]
    pad_to_multiple_of: int | None
    path: str

    def references(self) -> tuple[ModelRef, ...]:
        """Return the models whose tokenizer or embeddings are asked for by name, without repetition."""
        sources = [entry.source for entry in self.tokens.values()]
        named = [source.model for source in sources if isinstance(source, SameToken | OtherToken)]
        chosen = [self.source] if isinstance(self.source, ModelRef) else []
        return tuple(dict.fromkeys(chosen + named))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. Exactly one of `models`, `slices` and `modules` is not empty.

    Parameters:
        method: name of the merge method, or ``./file.py:Name``.
        base_model: the model that others are compared with, or None.
        models: whole models to merge.
        slices: output slices, in order.
        modules: what is merged into each module.
        parameters: settings for everything.
        dtype: dtype to cast to, without ``torch.``, or None.
        out_dtype: dtype to write instead of `dtype`, or None.
        tokenizer: the tokenizer of the output, or None to keep the base's.
        chat_template: name or text of a chat template, or None.
        text: the recipe as it was read.
        file: its name as the user gave it, or None.
        lines: path to line number, counted from 1.
        embed_slerp: whether vocabulary tensors of two models are merged by SLERP.
        rules: what is done about tensors that some models lack or have in another shape, by the key of the rule; a rule
            that is not written is not there.
    """

    method: str
    base_model: ModelRef | None
    models: tuple[Source, ...]
    slices: tuple[Slice, ...]
    modules: tuple[Module, ...]
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerSetting | None
    chat_template: str | None
    text: str = field(repr=False)
    file: str | None
    lines: Mapping[str, int] = field(repr=False)
    rules: Mapping[str, Setting] = field(default_factory=dict)
    embed_slerp: bool = False

    def place(self, path: str) -> Place:
        """Return where `path` stands; what is not written gets the line of the nearest part around it."""
        return Place(path, self.file, line_of(path, self.lines))

    def every_entry(self) -> tuple[Source, ...]:
        """Return the whole models of the recipe and of its modules, in order."""
        return (*self.models, *(entry for module in self.modules for entry in module.models))

    def every_slice(self) -> tuple[Slice, ...]:
        """Return the slices of the recipe and of its modules, in order."""
        return (*self.slices, *(piece for module in self.modules for piece in module.slices))

    def every_source(self) -> tuple[Source, ...]:
        """Return whatever stands for a model in the recipe: the whole models, then the sources of slices."""
        return (*self.every_entry(), *(source for piece in self.every_slice() for source in piece.sources))

    def references(self) -> tuple[ModelRef, ...]:
        """Return every model that takes part, the base model first, then in order of appearance, once each.

        Models that only the tokenizer setting names are not among them: see :meth:`TokenizerSetting.references`.
        """
        base = [] if self.base_model is None else [self.base_model]
        return tuple(dict.fromkeys([*base, *self._merged()]))

    def _merged(self) -> Iterator[ModelRef]:
        for models, slices in [(self.models, self.slices), *((part.models, part.slices) for part in self.modules)]:
            yield from (source.model for source in models)
            for piece in slices:
                yield from (source.model for source in piece.sources)
                if piece.base_model is not None:
                    yield piece.base_model


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of `path` or of the nearest part around it that has one."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)
