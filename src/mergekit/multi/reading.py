"""From the text of a pipeline to its stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from mergekit.checkpoint.hub import is_local
from mergekit.errors import Findings, Place
from mergekit.multi.references import references
from mergekit.plan import VOCABULARY
from mergekit.recipe import ModelRef, Recipe, nearest, read_recipe
from mergekit.recipe.assembly import build_recipe
from mergekit.recipe.forms import Text
from mergekit.recipe.language import RECIPE
from mergekit.recipe.records import Fields, Key, Record

_BORDER = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)  # YAML has it at the begin of a line for this alone
_BLANK = re.compile(r"(\s|^#.*$|\s#.*$|^%.*$|^---(?=\s|\Z)|^\.\.\.(?=\s|\Z))*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a pipeline.

    Parameters:
        text: as it is written, without the line ``---`` before it.
        line: of the file in which it begins, counted from 1.
    """

    text: str
    line: int

    @property
    def in_place(self) -> str:
        """The text behind as many empty lines as there are lines before it, so that lines are those of the file."""
        return "\n" * (self.line - 1) + self.text

    @property
    def blank(self) -> bool:
        """Whether it says nothing."""
        return _BLANK.fullmatch(self.text) is not None


@dataclass(frozen=True, slots=True)
class Stage:
    """One merge of a pipeline.

    Parameters:
        key: its name; empty for the merge without a name.
        document: its recipe as it is written.
        recipe: the same, read; models have the names that they have there.
        mentions: where it refers to another stage: path and name.
        out_path: the folder that its document asks for, or None.
    """

    key: str
    document: Document
    recipe: Recipe
    mentions: tuple[tuple[str, str], ...]
    out_path: Path | None

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"`{self.key}`" if self.key else "the merge without a name"

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the stages that it refers to, once each."""
        return tuple(dict.fromkeys(name for _, name in self.mentions))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The merges of one file.

    Parameters:
        stages: by their keys, each after those that it needs.
        file: its name as the user gave it, or None.
    """

    stages: Mapping[str, Stage]
    file: str | None

    def with_needs(self, keys: Sequence[str]) -> list[Stage]:
        """Stages with all that they need, directly or not, in the order in which they can be made."""
        wanted = set(keys)
        for stage in reversed(list(self.stages.values())):
            wanted.update(stage.needs if stage.key in wanted else ())
        return [stage for stage in self.stages.values() if stage.key in wanted]

    def record(self, stage: Stage) -> str:
        """What a stage is made by: its document behind those of the stages that it needs."""
        texts = [each.document.text.strip() + "\n" for each in self.with_needs([stage.key])]
        return "---\n".join(texts)

    @property
    def ends(self) -> tuple[str, ...]:
        """The keys of the stages that no other one needs."""
        needed = {name for stage in self.stages.values() for name in stage.needs}
        return tuple(key for key in self.stages if key not in needed)


def split(text: str) -> list[Document]:
    r"""The documents of a YAML stream; an empty one at the beginning or the end is none.

    Example:
        >>> [(document.line, document.blank) for document in split("a: 1\n---\n# nothing\n---\nb: 2\n---\n")]
        [(1, False), (2, True), (4, False)]
    """
    borders = [border.start() for border in _BORDER.finditer(text)]
    edges = [0, *borders, len(text)]
    pieces = [(start, text[start:stop]) for start, stop in pairwise(edges)]
    found = [Document(_BORDER.sub("", piece, 1), text.count("\n", 0, start) + 1) for start, piece in pieces]
    if len(found) > 1 and found[0].blank:
        del found[0]
    if len(found) > 1 and found[-1].blank:
        del found[-1]
    return found


def _name(text: str) -> str:
    if not text.strip() or text != text.strip() or text[0] == "." or re.search(r"[/\\@+\0\n]", text):
        raise ValueError(f"`{text}` cannot be the name of a merge")
    return text


def _folder(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"`{text}` is no folder")
    return text


_HEADING = (
    Key("name", Text("a name", _name, "a name of a folder, without `@` and `+`"), "what other merges call this one"),
    Key("out_path", Text("a folder", _folder, "a folder"), "where this merge is written"),
)


def stage_language(heading: dict[str, str | None] | None = None) -> Record[Recipe]:
    """The language of one document: that of recipes, with a name and a folder.

    Parameters:
        heading: is given the name and the folder.
    """

    def build(fields: Fields) -> Recipe | None:
        if heading is not None:
            heading.update({key.name: fields.optional(key.name) for key in _HEADING})
        return build_recipe(fields)

    return Record(RECIPE.noun, (*_HEADING, *RECIPE.keys), build, rules=RECIPE.rules)


def read_pipeline(text: str, *, file: str | None = None) -> Pipeline:
    r"""Read a pipeline: a recipe in each document, most of them with a name that others use in place of a model.

    Parameters:
        text: YAML, documents behind lines of ``---``.
        file: its name, for messages.

    Raises:
        RecipeError: documents have mistakes, or do not go together; all that was found is in the error.

    Example:
        >>> first = "name: a\nmerge_method: linear\nmodels: [{model: x}]"
        >>> last = "merge_method: passthrough\nmodels: [{model: a}]"
        >>> pipeline = read_pipeline(f"{last}\n---\n{first}\n---\n")
        >>> [(stage.key, stage.needs) for stage in pipeline.stages.values()]
        [('a', ()), ('', ('a',))]
    """
    findings = Findings()
    drafts = [draft for document in split(text) if (draft := _Draft.read(document, file, findings))]
    names = _checked_names(drafts, file, findings)
    stages = {draft.key: draft.stage(names, findings) for draft in drafts}
    findings.raise_errors(False)
    return Pipeline({key: stages[key] for key in _ordered(stages, findings)}, file)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A document that was read, before it is known which of its models are other merges."""

    document: Document
    recipe: Recipe
    heading: Mapping[str, str | None]

    @classmethod
    def read(cls, document: Document, file: str | None, findings: Findings) -> _Draft | None:
        if document.blank:
            hint = "one `---` between two merges"
            findings.error("the document is empty", Place("", file, document.line), hint=hint)
            return None
        heading: dict[str, str | None] = {}
        language = stage_language(heading)
        recipe, found = read_recipe(document.in_place, file=file, vocabulary=VOCABULARY, language=language)
        findings.errors.extend(found.errors)
        return None if recipe is None else cls(document, recipe, heading)

    @property
    def key(self) -> str:
        return self.heading["name"] or ""

    def stage(self, names: Sequence[str], findings: Findings) -> Stage:
        found = list(references(self.recipe))
        for path, ref in found:
            self._check(path, ref, names, findings)
        mentions = tuple((path, ref.model.path) for path, ref in found if ref.model.path in names)
        out_path = self.heading["out_path"]
        return Stage(self.key, self.document, self.recipe, mentions, Path(out_path) if out_path else None)

    def _check(self, path: str, ref: ModelRef, names: Sequence[str], findings: Findings) -> None:
        """Report a reference to a merge as what it is not, and one that is nearly the name of a merge and no folder."""
        wanted, place = ref.model.path, self.recipe.place(path)
        if wanted in names and ref.model.revision is not None:
            findings.error(f"`{wanted}` is a merge, which has no revisions", place, hint=f"`{wanted}`")
        if ref.adapter is not None and str(ref.adapter) in names:
            what = f"`{ref.adapter}` is a merge, and stands for a model, not for an adapter"
            findings.error(what, place, hint="the full path, if a folder is meant")
        if wanted not in names and "/" not in wanted and not is_local(ref.model) and (close := nearest(wanted, names)):
            findings.error(f"there is no merge and no folder called `{wanted}`", place, hint=f"`{close}`")


def _checked_names(drafts: Sequence[_Draft], file: str | None, findings: Findings) -> list[str]:
    """The names of all merges; one that two of them have is an error, and so is a second merge without a name."""
    first: dict[str, _Draft] = {}
    for draft in drafts:
        earlier = first.setdefault(draft.key, draft)
        if earlier is draft:
            continue
        if draft.key:
            line = earlier.recipe.place("name").line
            what = f"two merges are called `{draft.key}`; the other one's name is in line {line}"
            findings.error(what, draft.recipe.place("name"), hint="another name for one of them")
        else:
            place = Place("", file, draft.document.line)
            what = f"two merges have no name; the other one begins in line {earlier.document.line}"
            findings.error(what, place, "at most one merge without a name, the last one", "`name: NAME`")
    return [name for name in first if name]


def _ordered(stages: Mapping[str, Stage], findings: Findings) -> Iterator[str]:
    """The keys, each after those it needs."""
    sorter = TopologicalSorter({key: stage.needs for key, stage in stages.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        path = next(path for path, name in stages[circle[0]].mentions if name == circle[1])
        what = f"the merges need each other: {' → '.join(circle)}"
        findings.error(what, stages[circle[0]].recipe.place(path), "merges that need only others than themselves")
        findings.raise_errors(False)
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=list(stages).index)
        yield from ready
        sorter.done(*ready)
