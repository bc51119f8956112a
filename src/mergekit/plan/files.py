"""The files beside the weights: the donor's as they are, and a tokenizer that fits the output's vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.companions import FOLDERS, TOKENIZER, is_companion, is_like
from mergekit.checkpoint.finding import is_there
from mergekit.checkpoint.quantised import SIDE_FILES
from mergekit.errors import CheckpointError, Findings
from mergekit.plan.models import Model
from mergekit.plan.vocabulary import Vocabulary, with_token_ids
from mergekit.recipe import Recipe
from mergekit.tokenizer import choose_template, prove, tokenizer_config_with, tokenizer_files

_TABLE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What is in the output beside weights, by name.

    Parameters:
        copies: files that are taken over as they are.
        texts: contents of the others.
    """

    copies: Mapping[str, Path]
    texts: Mapping[str, str]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        models: Sequence[Model],
        vocabulary: Vocabulary | None,
        tokenizer: bool,
        findings: Findings,
    ) -> OutputFiles:
        """The donor's files, the tokenizer of the output, and the chat template that the recipe asks for.

        Parameters:
            recipe: the recipe.
            models: its models, the donor first.
            vocabulary: of the output, if it is not the donor's as it is.
            tokenizer: whether tokenizer and chat template are taken over.
            findings: where mistakes and remarks are recorded.

        Raises:
            CheckpointError: a file that has to be edited is not what its name says.
        """
        donor = models[0].checkpoint
        files = cls(copied_files(donor.root, tokenizer), rebuilt_files(donor, tokenizer))
        if vocabulary is not None:
            files = files._without_tokenizer()
        if not models[0].packed:
            files = cls({name: file for name, file in files.copies.items() if name not in SIDE_FILES}, files.texts)
        if vocabulary is not None:
            files = files._with_vocabulary(vocabulary, donor, tokenizer, recipe, findings)
        return files._with_template(recipe, models, findings) if recipe.chat_template else files

    def _without_tokenizer(self) -> OutputFiles:
        """All but the tokenizer beside the weights; one in a folder belongs to something else."""
        copies = {name: file for name, file in self.copies.items() if "/" in name or not is_like(name, TOKENIZER)}
        return OutputFiles(copies, {name: text for name, text in self.texts.items() if not is_like(name, TOKENIZER)})

    def _with_vocabulary(
        self, vocabulary: Vocabulary, donor: Checkpoint, tokenizer: bool, recipe: Recipe, findings: Findings
    ) -> OutputFiles:
        copies, texts = dict(self.copies), dict(self.texts)
        if tokenizer:
            own = tokenizer_files(vocabulary.owner, vocabulary.original, vocabulary.table)
            copies, texts = copies | dict(own.copies), texts | dict(own.texts)
            _prove(own.texts.get(_TABLE), vocabulary)
            place = recipe.place(recipe.tokenizer.path if recipe.tokenizer else "tokenizer")
            for remark in own.remarks:
                findings.warn(remark, place)
        old = donor.text(_GENERATION)
        if old is not None and (new := with_ids(old, _GENERATION, vocabulary, findings)) != old:
            texts[_GENERATION] = new
            copies.pop(_GENERATION, None)
        return OutputFiles(copies, texts)

    def _with_template(self, recipe: Recipe, models: Sequence[Model], findings: Findings) -> OutputFiles:
        copies, texts = dict(self.copies), dict(self.texts)
        checkpoints = [model.checkpoint for model in models]
        place = recipe.place("chat_template")
        template = choose_template(recipe.chat_template or "", checkpoints, place, findings)
        if template is not None:
            texts[_TEMPLATE] = template
            copies.pop(_TEMPLATE, None)
            file = copies.pop(_SETTINGS, None)
            settings = file.read_text(encoding="utf-8") if file else texts.get(_SETTINGS)
            edited = tokenizer_config_with(settings, str(file or _SETTINGS), template) if settings else None
            if edited is not None:
                texts[_SETTINGS] = edited
            elif file is not None:
                copies[_SETTINGS] = file
        return OutputFiles(copies, texts)


def _prove(text: str | None, vocabulary: Vocabulary) -> None:
    """Hold a tokenizer.json that is written anew against its table, in the library that will read it."""
    if text is None:
        return
    problems = prove(vocabulary.table, text, vocabulary.order.height, vocabulary.original)
    if problems:
        raise CheckpointError(
            f"the tokenizer of the output would not be right: {problems[0]}",
            place=str(vocabulary.owner.root / _TABLE),
            hint="`tokenizer: {source: base}`, or a tokenizer.json saved anew by transformers",
        )


def with_ids(text: str, name: str, vocabulary: Vocabulary | None, findings: Findings) -> str:
    """A config whose token ids are those of the output's vocabulary; entries whose token is not there are remarked on.

    Parameters:
        text: the donor's config.json or generation_config.json.
        name: which of them.
        vocabulary: of the output, if it is not the donor's as it is.
        findings: where remarks are recorded.
    """
    if vocabulary is None or vocabulary.tables[0] is None:
        return text
    chosen = json.loads(vocabulary.owner.text(name) or "{}")
    edited, lost = with_token_ids(text, vocabulary.tables[0].ids, vocabulary.table.ids, chosen)
    if lost:
        listed = ", ".join(f"`{key}`" for key in lost)
        findings.warn(f"{name}: {listed} kept, though the output's vocabulary does not have the token")
    return edited


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            another_merge = (entry / "merge_report.json").exists()
            if not (entry.is_symlink() or another_merge or is_like(entry.name, FOLDERS)):
                yield from _files(entry)
        elif entry.is_file():
            yield entry


def rebuilt_files(checkpoint: Checkpoint, tokenizer: bool = True) -> dict[str, str]:
    """The companions of a model's weights that are not in its folder, by their names in the output.

    Parameters:
        checkpoint: the donor.
        tokenizer: whether tokenizer and chat template are among them.
    """
    wanted = (name for name in checkpoint.texts if is_companion(name) and (tokenizer or not is_like(name, TOKENIZER)))
    return {name: checkpoint.texts[name]() for name in wanted}


def copied_files(root: Path, tokenizer: bool = True) -> Mapping[str, Path]:
    """The files of a model folder that a merge takes over as they are, by their names in the output.

    Parameters:
        root: the donor's folder; a model that is one file has no others.
        tokenizer: whether tokenizer and chat template are among them.

    Raises:
        CheckpointError: one of them is a link that leads out of the folder: who publishes a merge publishes them.
    """
    chosen = {}
    for file in _files(root) if root.is_dir() else ():
        name = file.relative_to(root).as_posix()
        if is_companion(name) and (tokenizer or not is_like(file.name, TOKENIZER)) and is_there(root, name):
            chosen[name] = file
    return chosen
