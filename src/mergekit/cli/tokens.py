"""``mergekit tokens``: how the vocabularies of models lie to each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output, print_json
from mergekit.cli.tables import paragraph, table
from mergekit.errors import CheckpointError

if TYPE_CHECKING:
    from mergekit.checkpoint import Checkpoint
    from mergekit.tokenizer.alignment import Alignment

_MOST = 6  # examples in a line
_LONGEST = 28  # characters of a token that is shown
_COUNTS = ("shared", "moved", "added", "absent", "padding")


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@option(GENERAL, "--all", "everything", is_flag=True, help="List all tokens of each kind, not only the first few.")
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@click.help_option("-h", "--help")
def tokens(models: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Say how the vocabulary of each MODEL lies to that of the first one.

    MODEL is a folder, a GGUF file, or a name of the hub, of which no weights are downloaded.

    \b
    shared   tokens with the same id in both
    moved    tokens with another id than in the first model
    added    tokens that the first model does not have
    absent   tokens that only the first model has
    padding  rows of the embedding behind that of the last token

    Listed are the first few of each, ids without a token, tokens without a row, tokens that are special in one model
    only, and tokens to which loaders give another id than tokenizer.json says.
    """  # noqa: D301  (click keeps the lines of a paragraph that begins with a backspace)
    output = Output(as_json)
    with output.failures():
        _tokens(models, everything, output)


def _tokens(models: Sequence[str], everything: bool, output: Output) -> None:
    from mergekit.checkpoint.hub import Hub, open_model
    from mergekit.recipe import reference
    from mergekit.tokenizer.alignment import align
    from mergekit.tokenizer.tables import read_tables

    checkpoints = [open_model(reference(model).model, Hub(stream=True)) for model in models]
    tables = []
    for model, found in zip(models, read_tables(checkpoints), strict=True):
        if found is None:
            raise CheckpointError("the model has no tokenizer", place=model, expected="tokenizer.json")
        tables.append(found)
    most = None if everything else _MOST
    alignments = align(tables, [_rows(checkpoint) for checkpoint in checkpoints])
    if output.as_json:
        records = [{"model": model} | one.as_json(most) for model, one in zip(models, alignments, strict=True)]
        print_json({"ok": True, "models": records})
    else:
        click.echo("\n".join(described(models, alignments, most)))


def _rows(checkpoint: Checkpoint) -> int | None:
    from mergekit.report.inspection import inspect_checkpoint

    return inspect_checkpoint(checkpoint).tokens.rows


def described(models: Sequence[str], alignments: Sequence[Alignment], most: int | None = _MOST) -> Iterator[str]:
    """Alignments in lines of 80 columns.

    Parameters:
        models: their names.
        alignments: one for each.
        most: tokens of each kind that are listed; None for all.
    """
    for number, model in enumerate(models, 1):
        yield from paragraph(f"model {number}", click.format_filename(model), indent=10)
    yield ""
    rows = [_row(number, one) for number, one in enumerate(alignments, 1)]
    yield from table(("model", "kind", "tokens", "rows", *_COUNTS), rows, left=2)
    for number, one in enumerate(alignments, 1):
        lines = [(label, text) for label, text in _kinds(one, most) if text]
        yield from ("", f"model {number}") if lines else ()
        for label, text in lines:
            yield from paragraph(f"  {label}", text, indent=14)
    yield ""
    same = all(one.equal for one in alignments)
    yield "All ids mean the same tokens." if same else "Ids do not mean the same tokens in all models."


def _row(number: int, one: Alignment) -> list[str]:
    rows = "-" if one.rows is None else f"{one.rows:,}"
    padding = "-" if one.padding is None else f"{one.padding:,}"
    counts = [f"{count:,}" for count in (one.shared, len(one.moved), len(one.added), len(one.absent))]
    return [str(number), one.kind, f"{one.tokens:,}", rows, *counts, padding]


def _kinds(one: Alignment, most: int | None) -> Iterator[tuple[str, str]]:
    moved = (f"{_shown(token.token)} {token.first} → {token.id}" for token in one.moved)
    yield "moved", _listed(moved, len(one.moved), most)
    yield "added", _listed(map(_shown, one.added), len(one.added), most)
    yield "absent", _listed(map(_shown, one.absent), len(one.absent), most)
    yield "no token", _listed(map(str, one.holes), len(one.holes), most)
    yield "no row", _listed(map(_shown, one.beyond), len(one.beyond), most)
    yield "other role", _listed(map(_shown, one.unlike), len(one.unlike), most)
    yield "other id", _listed(map(_shown, one.renumbered), len(one.renumbered), most)


def _shown(token: str) -> str:
    return repr(token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…")


def _listed(texts: Iterable[str], count: int, most: int | None) -> str:
    listed = [text for number, text in enumerate(texts) if most is None or number < most]
    rest = f" and {count - len(listed):,} more" if count > len(listed) else ""
    return ", ".join(listed) + rest
