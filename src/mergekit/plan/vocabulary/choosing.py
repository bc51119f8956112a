"""Decide the output's vocabulary from the recipe's tokenizer setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.hub import Hub, is_local, open_model
from mergekit.errors import CheckpointError, Findings, Place, UnsupportedError
from mergekit.plan.models import Model
from mergekit.plan.vocabulary.numbering import embedding_heights
from mergekit.plan.vocabulary.order import Order, Row, by_token
from mergekit.recipe import Address, ModelRef, OtherToken, Recipe, SameToken, TokenEntry, TokenizerSetting, nearest
from mergekit.tokenizer import Choice, TokenTable, read_tables, unite, with_tokens, within


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the output and the rows of its vocabulary matrices.

    Parameters:
        order: what the rows are made of.
        table: the tokens.
        original: those in the tokenizer files of `owner`.
        owner: the model whose tokenizer it is, or is made from.
        tables: the tokens of each model; the donor's are those that its configs speak of, or None.
    """

    order: Order
    table: TokenTable
    original: TokenTable
    owner: Checkpoint
    tables: tuple[TokenTable | None, ...]


def choose_vocabulary(recipe: Recipe, models: Sequence[Model], findings: Findings, hub: Hub) -> Vocabulary | None:
    """The vocabulary that a recipe with a tokenizer setting asks for; None if that is not possible.

    Parameters:
        recipe: the recipe.
        models: its models, the donor first.
        findings: where mistakes and remarks are recorded.
        hub: how models are taken from the hub.
    """
    assert recipe.tokenizer is not None
    place = recipe.place(recipe.tokenizer.path)
    try:
        return _Chooser(recipe, recipe.tokenizer, models, findings, place).choose(hub)
    except (CheckpointError, UnsupportedError) as error:
        problem = error.problem
        inside = f" in {problem.place}" if problem.place else ""
        findings.error(f"{problem.what}{inside}", place, problem.expected, problem.hint)
        return None


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Makes the vocabulary that a tokenizer setting asks for."""

    recipe: Recipe
    setting: TokenizerSetting
    models: Sequence[Model]
    findings: Findings
    place: Place

    def choose(self, hub: Hub) -> Vocabulary | None:
        heights = embedding_heights(self.models)
        if 0 not in heights:
            what = f"{self.models[0].ref} has no tensor that is known as its embedding"
            self.findings.error(what, self.place, hint="leaving out `tokenizer`")
            return None
        owner, keeper = self._owner(hub)
        *tables, original = read_tables([*(model.checkpoint for model in self.models), owner])
        if original is None:
            what = f"{owner.root} has no tokenizer"
            self.findings.error(what, self.place, "tokenizer.json, or files of an older tokenizer")
            return None
        known = [self._known(index, table, tables[0]) for index, table in enumerate(tables)]
        choice = self._choice(original, known, heights, keeper)
        for remark in choice.remarks:
            self.findings.warn(remark, self.place)
        order = self._order(choice.table, known, heights, keeper)
        return Vocabulary(order, choice.table, original, owner, tuple(tables))

    def _owner(self, hub: Hub) -> tuple[Checkpoint, int | None]:
        """The model whose tokenizer is taken, and its index if it takes part in the merge."""
        source = self.setting.source
        if not isinstance(source, ModelRef):
            return self.models[0].checkpoint, 0
        index = self._index(source)
        return (_texts_of(source.model, hub), None) if index is None else (self.models[index].checkpoint, index)

    def _index(self, ref: ModelRef) -> int | None:
        """The model that a setting names: with its adapter, else without."""
        exact = (index for index, model in enumerate(self.models) if model.ref == ref)
        alike = (index for index, model in enumerate(self.models) if model.ref.model == ref.model)
        return next(exact, next(alike, None))

    def _known(self, index: int, table: TokenTable | None, first: TokenTable | None) -> TokenTable:
        """The tokens of a model; one without a tokenizer is taken to have the donor's."""
        if table is not None:
            return table
        if first is None:
            what = "the model has no tokenizer"
            raise CheckpointError(what, place=str(self.models[index].checkpoint.root), expected="tokenizer.json")
        self.findings.warn(
            f"{self.models[index].ref} has no tokenizer: its ids are taken to be those of {self.models[0].ref}",
            self.place,
        )
        return first

    def _choice(
        self, original: TokenTable, tables: Sequence[TokenTable], heights: Mapping[int, int], keeper: int | None
    ) -> Choice:
        """The tokens of the output."""
        own = within(original, heights[keeper]) if keeper is not None and keeper in heights else Choice(original)
        if self.setting.source == "union":
            others = [_with_rows(table, heights[i]) for i, table in enumerate(tables) if i and i in heights]
            grown = unite(own.table, list(dict.fromkeys(others)), self.setting.tokens)
        else:
            grown = with_tokens(own.table, self.setting.tokens)
        return Choice(grown.table, (*own.remarks, *grown.remarks), own.changed or grown.changed, own.removed)

    def _order(
        self, table: TokenTable, tables: Sequence[TokenTable], heights: Mapping[int, int], keeper: int | None
    ) -> Order:
        """The rows of the output: a row for each token, as many as the keeper has, or a multiple."""
        multiple = self.setting.pad_to_multiple_of
        height, padding = max(table.size, heights.get(keeper, 0) if keeper is not None else 0), 0
        if multiple is not None:
            height, padding = table.size, -table.size % multiple
        ids = {index: tables[index].ids for index in heights}
        keepers = [index for index in heights if keeper is not None and tables[index].ids == tables[keeper].ids]
        rows = by_token(table.ids, height, ids, heights, keepers)
        found = {text: self._row(text, entry, tables, heights) for text, entry in self.setting.tokens.items()}
        given = {table.ids[text]: row for text, row in found.items() if self.setting.tokens[text].source is not None}
        forced = frozenset(table.ids[text] for text, entry in self.setting.tokens.items() if entry.force)
        return Order(rows, given, forced, padding)

    def _row(
        self, text: str, entry: TokenEntry, tables: Sequence[TokenTable], heights: Mapping[int, int]
    ) -> Row | None:
        """The row that a token is to have; None for zeros, and where nothing is said."""
        source = entry.source
        if not isinstance(source, SameToken | OtherToken):
            return None
        place = self.recipe.place(entry.path)
        index = self._index(source.model)
        if index is None or index not in heights:
            self.findings.error(f"{source.model} takes no part in the merge", place, "one of the merged models")
            return None
        wanted = source.token if isinstance(source, OtherToken) else text
        number = wanted if isinstance(wanted, int) else tables[index].ids.get(wanted)
        if number is None:
            close = nearest(str(wanted), tables[index].added)
            self.findings.error(f"{source.model} has no token {wanted!r}", place, hint=f"`{close}`" if close else None)
        elif number >= heights[index]:
            what = f"{source.model} has no row {number:,} for {wanted!r}: its matrix has {heights[index]:,}"
            self.findings.error(what, place)
        else:
            return Row(index, number)
        return None


def _with_rows(table: TokenTable, rows: int) -> TokenTable:
    """What another model gives to a union: the tokens that it has a row for."""
    if table.size <= rows:
        return table
    ids = {text: number for text, number in table.ids.items() if number < rows}
    return replace(table, ids=ids, added={text: flags for text, flags in table.added.items() if text in ids})


def _texts_of(address: Address, hub: Hub) -> Checkpoint:
    """A model of which only the small files are wanted."""
    folder = Path(address.path).expanduser()
    if is_local(address) and folder.is_dir():
        return Checkpoint(folder, {}, {}, (), ())
    return open_model(address, replace(hub, stream=True))
