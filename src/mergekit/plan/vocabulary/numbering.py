"""Vocabularies of a recipe that says nothing about them: equal ids have to mean equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError, Findings
from mergekit.plan.models import Model
from mergekit.plan.vocabulary.order import Order, by_number
from mergekit.tokenizer import TokenTable, parse_table
from mergekit.tokenizer.alignment import Alignment, align

_FILE = "tokenizer.json"
_UNION = "`tokenizer: {source: union}`, which aligns the models by their tokens"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What becomes of ids that keep their numbers.

    Parameters:
        order: rows of the output; None if all models have as many, or if nothing is known of them.
        tables: the tokens of each model, as far as they are known; none at all if there was nothing to compare.
    """

    order: Order | None = None
    tables: tuple[TokenTable | None, ...] = ()


def alignments_of(models: Sequence[Model], tables: Sequence[TokenTable | None]) -> dict[int, Alignment]:
    """How vocabularies lie to the donor's, by index of the model; nothing where tokens are not known.

    Parameters:
        models: the models, the donor first.
        tables: the tokens of each, or none at all.
    """
    known = {index: table for index, table in enumerate(tables) if table is not None}
    if 0 not in known:
        return {}
    heights = embedding_heights(models)
    return dict(zip(known, align(list(known.values()), [heights.get(index) for index in known]), strict=True))


def embedding_heights(models: Sequence[Model]) -> dict[int, int]:
    """Rows of the embedding of every model that has one."""
    return {index: own.spec.shape[0] for index, model in enumerate(models) if (own := model.embedding) is not None}


def keep_numbers(models: Sequence[Model], findings: Findings) -> Numbers:
    """Rows of matrices of different heights by their numbers.

    The output is as high as the donor's matrices. Where ids are known to mean other tokens that is an error, or a
    warning if the heights are the same.

    Parameters:
        models: the models, the donor first.
        findings: where mistakes and remarks are recorded.
    """
    heights = embedding_heights(models)
    if 0 not in heights:
        return Numbers()
    texts = [_text(model.checkpoint) for model in models]
    differ = len({text for text in texts if text is not None}) > 1
    tables = tuple(_tables(models, texts, findings)) if differ else ()
    agree = _agree(models, tables, heights, findings) if differ else None not in texts
    if len(set(heights.values())) < 2 or not agree:
        return Numbers(None, tables)
    findings.warn(_remark(models, heights), hint=_UNION)
    return Numbers(by_number(heights, heights[0]), tables)


def _remark(models: Sequence[Model], heights: Mapping[int, int]) -> str:
    least = heights[0]
    short = " and ".join(str(models[index].ref) for index, height in heights.items() if height < least)
    tall = " and ".join(str(models[index].ref) for index, height in heights.items() if height > least)
    filled = f"; rows that {short} lack{'s' if ' and ' not in short else ''} are taken from it" if short else ""
    cut = f"; further rows of {tall} are left out" if tall else ""
    counts = " and ".join(f"{height:,}" for height in dict.fromkeys(heights.values()))
    return f"the vocabularies have {counts} rows: the output has {least:,}, as {models[0].ref}{filled}{cut}"


def _agree(
    models: Sequence[Model], tables: Sequence[TokenTable | None], heights: Mapping[int, int], findings: Findings
) -> bool:
    """Whether ids are known to mean the same tokens in all models; a difference is recorded."""
    first, others = tables[0], list(enumerate(tables))[1:]
    if first is None:
        return False
    known = {index: table for index, table in others if table is not None and index in heights}
    alike = [_agrees(models, index, first, table, heights, findings) for index, table in known.items()]
    return len(known) == len(others) and all(alike)


def _agrees(
    models: Sequence[Model],
    index: int,
    first: TokenTable,
    other: TokenTable,
    heights: Mapping[int, int],
    findings: Findings,
) -> bool:
    if other is first:
        return True
    rows = min(heights[0], heights[index])
    texts = {number: text for text, number in first.ids.items()}
    unlike = [(text, number) for text, number in other.ids.items() if number < rows and texts.get(number, text) != text]
    if not unlike:
        return True
    text, number = unlike[0]
    record = findings.warn if heights[0] == heights[index] else findings.error
    count = "1 id means another token" if len(unlike) == 1 else f"{len(unlike):,} ids mean other tokens"
    record(
        f"{count} in {models[index].ref} than in {models[0].ref}: {number} is {text!r} and {texts[number]!r}",
        hint=_UNION,
    )
    return False


def _tables(models: Sequence[Model], texts: Sequence[str | None], findings: Findings) -> list[TokenTable | None]:
    known: dict[str | None, TokenTable | None] = {None: None}
    for model, text in zip(models, texts, strict=True):
        if text is not None and text not in known:
            try:
                known[text] = parse_table(text, str(model.checkpoint.root / _FILE))
            except CheckpointError as error:
                known[text] = None
                findings.warn(f"the tokenizer of {model.ref} is not compared: {error.problem.what}")
    return [known[text] for text in texts]


def _text(checkpoint: Checkpoint) -> str | None:
    try:
        return checkpoint.text(_FILE)
    except (OSError, UnicodeDecodeError):
        return None
