"""Write another set of tokens into the contents of a tokenizer.json.

Public: :func:`edited`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from mergekit.errors import CheckpointError, UnsupportedError
from mergekit.tokenizer.tables import Flags, TokenTable, numbered

_Json = dict[str, Any]


def edited(table: TokenTable, ids: Mapping[str, int], added: Mapping[str, Flags]) -> TokenTable:
    """The table with other tokens, and a tokenizer.json to which ``tokenizers`` gives just these ids.

    Parameters:
        table: what is edited; it is not changed.
        ids: id by token. A token that stays keeps its id; of Unigram only tokens at the end can leave.
        added: flags of the added ones; the others are entries of `model.vocab`.

    Raises:
        UnsupportedError: the tokenizer cannot do without a token that is left out.
        CheckpointError: merges, framing or padding of the tokenizer are not what ``tokenizers`` writes.
    """
    ids = dict(sorted(ids.items(), key=lambda entry: entry[1]))
    removed = table.ids.keys() - ids.keys()
    content = dict(table.content)
    content["added_tokens"] = [{"id": ids[text], "content": text, **flags} for text, flags in added.items()]
    model = dict(content["model"])
    if removed:
        try:
            content |= _without(table, removed)
            model |= {"merges": list(_merges(model, removed))} if "merges" in model else {}
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = "not what `tokenizers` writes: merges, post_processor or padding have another form"
            raise CheckpointError(what, place=table.place) from error
    model["vocab"] = _listed(model["vocab"], ids, added) if table.kind == "Unigram" else _mapped(model, ids, added)
    content["model"] = model
    return TokenTable(ids, dict(added), table.kind, content, table.place)


def _mapped(model: _Json, ids: Mapping[str, int], added: Mapping[str, Flags]) -> dict[str, int]:
    """The vocabulary of all kinds but Unigram: what stays, then what is new, in the order of ids."""
    kept = {text: ids[text] for text in model["vocab"] if text in ids}
    vocab = kept | {text: number for text, number in ids.items() if text not in added}
    # An added token has a certain id only as an entry of the vocabulary, so they go there where counting goes wrong.
    return vocab if _counts_right(vocab, ids, added) else kept | dict(ids)


def _listed(pieces: list[list[Any]], ids: Mapping[str, int], added: Mapping[str, Flags]) -> list[list[Any]]:
    """The vocabulary of Unigram, where a token's place is its id.

    Added tokens that stand before new ordinary ones have to be in it, too; those behind are counted on.
    """
    names = {number: text for text, number in ids.items()}
    last = max((number for number, (text, _) in enumerate(pieces) if ids.get(text) == number), default=-1)
    kept = pieces[: last + 1]
    end = max((number for text, number in ids.items() if text not in added), default=-1) + 1
    texts = [names[number] for number in range(len(kept), end)]
    # Any text that the kept pieces can spell is at best cut into them: one piece of n characters with this score is
    # worth less than n of the worst. So a new piece is used only where there is a character that they do not know.
    worst = min((score for _, score in kept), default=0.0)
    score = min(worst, 0.0) * max(map(len, texts), default=0) - 1.0
    return kept + [[text, score] for text in texts]


def _counts_right(vocab: Mapping[str, int], ids: Mapping[str, int], added: Mapping[str, Flags]) -> bool:
    """Whether every version of ``tokenizers`` gives the added tokens their ids."""
    wanted = {text: ids[text] for text in added}
    return all(given == wanted for given in numbered(vocab, len(vocab), added))


def _merges(model: _Json, removed: Set[str]) -> Iterator[Any]:
    """The merges without those that mention or make a token that is not there any more."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made = left + right[len(prefix) :]
        if not {left, right, made} & removed:
            yield merge


def _without(table: TokenTable, removed: Set[str]) -> _Json:
    """What else of the content changes without some tokens.

    Raises:
        UnsupportedError: one of them is needed.
    """
    model = table.content["model"]
    unknown = model.get("unk_token")
    if table.kind == "Unigram" and (number := model.get("unk_id")) is not None:
        unknown = model["vocab"][number][0]
    roles = dict.fromkeys(_framing(table.content.get("post_processor")), "put around every text")
    for text, role in (roles | {unknown: "the unknown token"}).items():
        if text in removed:
            what = f"token {text!r} has no row in the model's matrix (its id is {table.ids[text]}), but it is {role}"
            raise UnsupportedError(what, place=table.place, hint="the tokenizer of another model")
    padding = table.content.get("padding")
    return {"padding": None} if padding and padding["pad_token"] in removed else {}


def _framing(processor: Any) -> Iterator[str]:
    """The tokens that a post-processor puts around texts."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors") or ():
        yield from _framing(inner)
    for special in (processor.get("special_tokens") or {}).values():
        yield from special.get("tokens") or ()
    for side in ("sep", "cls"):
        if side in processor:
            yield processor[side][0]
