"""Every method says the same things about itself, in the same form, and they are true."""

import inspect
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from mergekit.kernels import GRAIN
from mergekit.methods import METHODS, Method, Needs, parameter
from mergekit.methods.contract import row_grain
from mergekit.methods.describe import describe, specimens

NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
RANGE = re.compile(rf"(?<![\w.−-]){NUMBER} to {NUMBER}(?!\w|\.\d)")
DEFAULT = re.compile(r"(?<!the )\bdefault(?: is|s to| of)?:? (-?\w+(?:\.\d+)?(?:e-?\d+)?)|(-?[\w.]+) by default")
ORDER = ("Parameters:", "Shapes:", "Reference:", "Example")
ARXIV = re.compile(r"arxiv\.org/abs/([\d.]+\d)")

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def stated_otherwise(declared, meaning):
    """Bounds and defaults in a text that are not those of the declaration."""
    found = [tuple(map(float, match)) for match in RANGE.findall(meaning)]
    if found and (declared.low, declared.high) not in found and declared.bounds:
        yield f"`{declared.name}`: the docstring says {found[0]}, the declaration {declared.bounds}"
    for match in DEFAULT.finditer(meaning):
        said, value = match[1] or match[2], declared.default
        spelling = str(value).lower() if isinstance(value, bool | str) else f"{value:g}"
        if said.strip("`") not in (spelling, str(value)):
            yield f"`{declared.name}`: the docstring says default {said}, the declaration {value}"


def documented_names(method):
    """Names that have an entry of their own in the docstring."""
    section = inspect.getdoc(method).partition("Parameters:\n")[2].partition("\n\n")[0]
    groups = re.findall(r"^    (\w+(?:, \w+)*): \S", section, re.M)
    return [name for group in groups for name in group.split(", ")]


def parameter_flaws(method):
    """Parameters that the docstring leaves out, invents or contradicts."""
    documented = documented_names(method)
    declared = [each.name for each in method.parameters()]
    yield from (f"`Parameters:` has no entry `{name}: …`" for name in declared if name not in documented)
    yield from (f"`Parameters:` has `{name}`, which is not declared" for name in documented if name not in declared)
    for each in method.parameters():
        yield from stated_otherwise(each, describe(method).meanings[each.name])
        if not each.doc:
            yield f"the declaration of `{each.name}` has no `doc`"


def instances(method):
    """With the defaults; and, if the method reads more than once with others, with numbers in the middle, too."""
    plain = next(specimens(method))
    yield plain
    if not describe(method).passes.startswith("one"):
        numbers = [each for each in method.parameters() if each.kind == "float" and each.fits(0.5)]
        yield replace(plain, **{each.field: (0.5, 0.5) if each.per_model else 0.5 for each in numbers})


def fact_flaws(method):
    """Facts that are missing, or that the class contradicts."""
    found = describe(method)
    for label, text in (("Shapes: …", found.shapes), ("Passes: …", found.passes)):
        if not text:
            yield f"`{label}` is missing"
    if not found.determinism:
        yield "no sentence begins with `Deterministic` or `Random`"
    if found.passes and not re.match(r"(one|two|three|four|five)\b", found.passes):
        yield f"`Passes:` begins with {found.passes!r}, not with a number in words (one, two or three, …)"
    elif found.passes and found.passes.startswith("one") == any(made.reductions() for made in instances(method)):
        yield f"`Passes: {found.passes}` contradicts `reductions()`: one pass is the merge, each reduction takes others"
    if bool(found.source) != bool(found.link):
        yield "`Reference: …` in the docstring and `reference` of the class: one without the other"
    number = ARXIV.search(found.link)
    if number and f"arXiv:{number[1]}" not in found.source:
        yield f"`Reference:` does not name arXiv:{number[1]}, to which `reference` leads"


def form_flaws(method):
    """What keeps the text from being read, by people or by `describe`."""
    text = inspect.getdoc(method)
    found = describe(method)
    if not re.fullmatch(r"[A-Z](?:[^.\n]|\.(?! ))*\.", found.summary):
        yield f"the first paragraph is not one sentence: {found.summary!r}"
    if len(found.summary) > 140:
        yield f"the first sentence is {len(found.summary)} letters long, 140 are the most for a table"
    if not any("=" in formula for paragraph in found.formula for formula in re.findall("``(.+?)``", paragraph)):
        yield "there is no formula: ``y = …`` between double backticks, in a paragraph before `Parameters:`"
    if re.search(r":\w+:`|^Args:|^Arguments:|^Returns:", text, re.M):
        yield "there are Sphinx roles or sections of another kind"
    places = [match.start() for label in ORDER if (match := re.search(rf"^{label}|(?<=\. ){label}", text, re.M))]
    if places != sorted(places):
        yield f"the sections are not in the order {', '.join(ORDER)}"
    late = [part for part in re.split(r"\n\n(?=\S)", text.partition("Shapes:")[2])[1:] if not part.startswith(ORDER)]
    yield from (f"a paragraph after the facts is none of the form: {part[:50]!r}" for part in late)


@every_method
def test_docstring_is_complete_and_true(method):
    flaws = [*form_flaws(method), *parameter_flaws(method), *fact_flaws(method)]
    assert not flaws, f"docstring of {method.__name__}:\n  " + "\n  ".join(flaws)


@every_method
def test_it_fits_the_table_of_all_methods(method):
    found = describe(method)
    assert found.title
    assert found.name == found.name.lower()
    assert len(found.name) <= 16


@pytest.mark.parametrize(
    ("passes", "count"),
    [
        ("one.", "1"),
        ("two; three with `b`", "2 or 3"),
        ("two, or four to five", "2 to 5"),
        ("two; one by rows", "1 or 2"),
    ],
)
def test_passes_are_counted_from_the_least_to_the_most(passes, count):
    assert replace(describe(METHODS["ties"]), passes=passes).count == count


@every_method
def test_specimens_are_all_combinations_of_flags(method):
    flags = [each.field for each in method.parameters() if each.kind == "bool"]
    made = list(specimens(method))
    assert len({tuple(getattr(each, flag) for flag in flags) for each in made}) == len(made) == 2 ** len(flags)
    defaults = {each.field: each.default for each in method.parameters() if not each.required and not each.per_model}
    assert {name: getattr(made[0], name) for name in defaults} == defaults


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Do one thing. And another

    With ``u = v``:
    - first ``a``,
    - then ``b``.

    ``y = u``, really.

    Parameters:
        first, second: of both,
            on two lines; default 2.

        lambda: 0 to 1.

    Shapes: any
    shape. Passes: two, or three with `whole`. Deterministic; Shapes: are no label here.
    Memory: little. Differs from the paper: not much (see there). Differs from the peer and others: a lot.

    Reference: Nobody et al. 2020, "Passes: a study", eq. 1.

    Example:
        >>> 1
        1
    """

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "Full"
    reference: ClassVar[str] = "https://example.org"
    needs: ClassVar[Needs] = Needs("optional", least=2, most=3)

    first: float = parameter(doc="one")
    second: float = parameter(2.0, doc="two", low=2)
    lambda_: float = parameter(0.5, name="lambda", doc="three", low=0, high=1)
    whole: bool = parameter(False, kind="bool", doc="four, from the declaration")

    def grain(self, shape):
        return shape[0] * shape[1] if self.whole else row_grain(shape)

    def merge(self, block, stats):
        return block.base


@dataclass(frozen=True, kw_only=True)
class Bare(Method):
    name: ClassVar[str] = "bare"
    title: ClassVar[str] = "Bare"
    reference: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs("ignored")

    weight: tuple[float, ...] = parameter(per_model=True, doc="of each", low=1)

    def merge(self, block, stats):
        return block.base


def test_every_part_is_read():
    found = describe(Full)
    assert found.summary == "Do one thing. And another"
    assert found.formula == ("With ``u = v``:\n- first ``a``,\n- then ``b``.", "``y = u``, really.")
    assert found.meanings == {
        "first": "of both, on two lines; default 2.",
        "second": "of both, on two lines; default 2.",
        "lambda": "0 to 1.",
        "whole": "four, from the declaration",
    }
    assert found.shapes == "any shape."
    assert (found.passes, found.count) == ("two, or three with `whole`.", "2 or 3")
    assert found.determinism.startswith("Deterministic")
    assert found.memory == "little."
    assert found.differences == {"the paper": "not much (see there).", "the peer and others": "a lot."}
    assert found.source == 'Nobody et al. 2020, "Passes: a study", eq. 1.'
    assert found.link == "https://example.org"


def test_a_class_without_docstring_is_described_by_its_declarations():
    found = describe(Bare)
    assert (found.summary, found.formula, found.shapes, found.passes, found.count) == ("", (), "", "", "")
    assert found.meanings == {"weight": "of each"}
    assert next(specimens(Bare)).weight == (1.5, 1.5)


def test_memory_is_that_of_the_grain():
    assert next(specimens(Full)).grain((4, 4 * GRAIN)) == 4 * GRAIN
    assert describe(METHODS["linear"]).memory == "one stripe of every input at a time"

    class Rows(Full):
        """No word about it."""

    assert describe(Rows).memory == "whole rows of every input at a time; with other flags a whole tensor"


@pytest.mark.parametrize(
    ("meaning", "flaws"),
    [
        ("share, 0 to 1.", 0),
        ("share, 0 to 2.", 1),
        ("from 0 to 1; the default of papers is 3.", 0),
        ("share; default 0.5.", 0),
        ("share; default 0.7.", 1),
        ("0.7 by default", 1),
        ("a share", 0),
    ],
)
def test_contradictions_are_found(meaning, flaws):
    share = next(each for each in Full.parameters() if each.name == "lambda")
    assert len(list(stated_otherwise(share, meaning))) == flaws


def test_all_flaws_are_listed():
    class Poor(Full):
        """do many things. Badly.

        Args:
            first: one.

        Passes: some.
        """

    flaws = "\n".join([*form_flaws(Poor), *parameter_flaws(Poor), *fact_flaws(Poor)])
    for part in (
        "not one sentence",
        "no formula",
        "another kind",
        "no entry `lambda: …`",
        "`Shapes: …` is missing",
        "`Deterministic` or `Random`",
        "'some.'",
        "one without the other",
    ):
        assert part in flaws
