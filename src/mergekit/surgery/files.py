"""What is written beside the weights: the donor's tokenizer, and configs that speak of its tokens.

Public: :func:`files_for`, :func:`config_for`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mergekit.checkpoint import Checkpoint
from mergekit.errors import Findings
from mergekit.layout import edit_config, rewrite
from mergekit.plan.files import OutputFiles, with_ids
from mergekit.plan.vocabulary import Order, Vocabulary
from mergekit.surgery.opening import Donor, Patient

_CONFIG, _GENERATION, _SETTINGS = "config.json", "generation_config.json", "tokenizer_config.json"
_ANY_CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is, whatever the model
_ENDS = ("_token_id", "_token_index")


def vocabulary_for(patient: Patient, donor: Donor, rows: int) -> Vocabulary:
    """The vocabulary of the output: the donor's tokens.

    Parameters:
        patient: the model.
        donor: whose tokens it gets.
        rows: of its matrices.
    """
    table, owner = donor.tokens.table, _speaking(donor)
    return Vocabulary(Order({0: np.arange(rows)}), table, table, owner, (patient.tokens.table,))


def files_for(patient: Patient, vocabulary: Vocabulary, donor: Donor, template: str) -> OutputFiles:
    """Everything but weights and config.json: the model's files, with the donor's tokenizer.

    Parameters:
        patient: the model.
        vocabulary: see :func:`vocabulary_for`.
        donor: whose tokenizer it gets.
        template: of chats: "donor" or "model", or what recipes may name.

    Raises:
        RecipeError: there is no such template.
        CheckpointError: a file that has to be edited is not what its name says.
    """
    findings = patient.plan.findings
    wanted = {"donor": None, "model": "auto"}.get(template, template)  # the most frequent one, of one model
    recipe = replace(patient.plan.recipe, chat_template=wanted)
    files = OutputFiles.of(recipe, [patient.model], vocabulary, True, findings)
    findings.raise_errors()
    texts = dict(files.texts)
    if _GENERATION in texts:
        texts[_GENERATION] = _within(texts[_GENERATION], _GENERATION, vocabulary.order.height, findings)
    return _with_class(OutputFiles(files.copies, texts), donor)


def config_for(patient: Patient, vocabulary: Vocabulary) -> str:
    """The model's config.json with the donor's number of rows and token ids.

    Parameters:
        patient: the model.
        vocabulary: see :func:`vocabulary_for`.
    """
    rows, findings = vocabulary.order.height, patient.plan.findings
    text = edit_config(patient.plan.texts[_CONFIG], donor=patient.model.layout, vocab_size=rows)
    return _within(with_ids(text, _CONFIG, vocabulary, findings), _CONFIG, rows, findings)


def _speaking(donor: Donor) -> Checkpoint:
    """The donor with configs that name a token id for every role that its tokenizer knows."""
    checkpoint, tokens = donor.model.checkpoint, donor.tokens
    ids = {f"{role}_id": tokens.table.ids[text] for role, text in tokens.roles.items()}
    said = ids | {key: value for key, value in checkpoint.config.items() if key.endswith(_ENDS) and value is not None}
    generation = said | json.loads(checkpoint.text(_GENERATION) or "{}")
    made = {_CONFIG: json.dumps(said), _GENERATION: json.dumps(generation)}
    return replace(checkpoint, texts={**checkpoint.texts, **{name: text.__str__ for name, text in made.items()}})


def _within(text: str, name: str, rows: int, findings: Findings) -> str:
    """A config without ids of tokens for which there are no rows: loaders stumble over them."""
    told = dict(_ids(json.loads(text)))
    kept = {path: _known(value, rows) for path, value in told.items()}
    changed = {path: value for path, value in kept.items() if value != told[path]}
    if changed:
        listed = ", ".join(f"`{'.'.join(path)}` set to {json.dumps(value)}" for path, value in changed.items())
        findings.warn(f"{name}: {listed}, because the new vocabulary has neither the token nor its id")
    return rewrite(text, changed) if changed else text


def _known(value: int | list[int], rows: int) -> int | list[int] | None:
    """The ids for which there are rows; None if there is none."""
    if isinstance(value, int):
        return value if value < rows else None
    return [number for number in value if number < rows] or None


def _ids(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int | list[int]]]:
    """Token ids, one or several, and where they stand."""
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            yield from _ids(value, (*path, key))
        elif key.endswith(_ENDS) and numbers and all(isinstance(number, int) for number in numbers):
            yield (*path, key), value


def _with_class(files: OutputFiles, donor: Donor) -> OutputFiles:
    """The same with a tokenizer_config.json that names a class: without one, loaders choose by the model's type."""
    copies, texts = dict(files.copies), dict(files.texts)
    text = texts.get(_SETTINGS) or donor.model.checkpoint.text(_SETTINGS) or "{}"
    settings = json.loads(text)
    if "tokenizer_class" in settings or "tokenizer.json" not in {**copies, **texts}:
        return files
    settings = {**donor.tokens.roles, **settings, "tokenizer_class": _ANY_CLASS}
    copies.pop(_SETTINGS, None)
    texts[_SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return OutputFiles(copies, texts)
