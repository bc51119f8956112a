"""Which family of mixtures a dense model becomes, and why no other one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from mergekit.errors import Findings
from mergekit.moe.dense import Dense
from mergekit.moe.families import FAMILIES, Family
from mergekit.moe.language import RANDOM, MoeRecipe
from mergekit.moe.traits import BLURRED, HEAD_NORMS, WIDE_NORMS

INEXACT = "--allow-inexact"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a family does not fit.

    Parameters:
        text: a clause.
        blurs: whether a mixture can be written all the same, which computes otherwise than the dense model.
    """

    text: str
    blurs: bool = False


@final
@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses a family.

    Parameters:
        recipe: the recipe.
        base: the donor of everything but experts.
        experts: the experts.
        shared: the shared experts.
    """

    recipe: MoeRecipe
    base: Dense
    experts: Sequence[Dense]
    shared: Sequence[Dense]

    def choose(self, findings: Findings, inexact: bool = False, explain: bool = False) -> Family | None:
        """The nearest family that computes as the dense model does; None, with an error, if there is none.

        Parameters:
            findings: where errors and remarks are recorded.
            inexact: whether a family that the recipe names may compute otherwise.
            explain: say why each of the others does not fit.
        """
        wanted = self.recipe.architecture
        named = [family for family in FAMILIES if wanted is None or family.is_called(wanted)]
        if not named:
            what = f"`{wanted}` is not the name of a family of mixtures"
            findings.error(
                what, self.recipe.place("architecture"), f"one of {', '.join(f'`{_short(each)}`' for each in FAMILIES)}"
            )
            return None
        reasons = {family: tuple(self.reasons(family)) for family in named}
        fitting = [family for family, found in reasons.items() if not found]
        if explain:
            for family in named:
                findings.notice(f"{family.title}: " + ("; ".join(each.text for each in reasons[family]) or "fits"))
        if fitting:
            return self._nearest(fitting, findings)
        return self._blurred(reasons, findings, inexact and wanted is not None)

    def _nearest(self, fitting: Sequence[Family], findings: Findings) -> Family:
        kind = self.base.config.get("model_type")

        def distance(family: Family) -> tuple[bool, bool, int]:
            foreign = not (family.native or self.recipe.shared)  # there are families that need no code from the hub
            return foreign, kind not in family.kin, FAMILIES.index(family)

        chosen = min(fitting, key=distance)
        others = [f"`{_short(family)}`" for family in fitting if family is not chosen and kind not in chosen.kin]
        also = f"; `architecture` could be {' or '.join(others)} as well" if others else ""
        findings.notice(f"the output is {chosen.title}{also}")
        if not chosen.native:
            findings.warn(f"{chosen.title} is loaded by code from the hub, which loaders run only if they are told to")
        return chosen

    def _blurred(
        self, reasons: Mapping[Family, tuple[Reason, ...]], findings: Findings, inexact: bool
    ) -> Family | None:
        blurred = [family for family, found in reasons.items() if all(each.blurs for each in found)]
        if blurred and inexact:
            for each in reasons[blurred[0]]:
                findings.warn(f"{blurred[0].title} computes otherwise than the base: {each.text}")
            return blurred[0]
        common = [each for each in next(iter(reasons.values())) if all(each in found for found in reasons.values())]
        lines = [f"every family: {'; '.join(each.text for each in common)}"] if common and len(reasons) > 1 else []
        for family, found in reasons.items():
            own = [each.text for each in found if each not in common or len(reasons) == 1]
            lines += [f"{family.title}: {'; '.join(own)}"] if own else []
        what = (
            f"no mixture computes as {self.base.model.ref} does"
            if len(reasons) > 1
            else "the architecture does not fit"
        )
        place = self.recipe.place("architecture" if self.recipe.architecture else "base_model")
        hint = (
            f"`{INEXACT}` with `architecture: {_short(blurred[0])}`, for a mixture to be trained" if blurred else None
        )
        findings.error("\n    ".join([f"{what}:", *lines]), place, hint=hint)
        return None

    def reasons(self, family: Family) -> Iterator[Reason]:
        """Why a family does not fit."""
        for trait in self.base.traits():
            if trait.kind not in family.says:
                yield Reason(trait.about, trait.kind in BLURRED)
        yield from self._norms(family)
        yield from self._shared(family)

    def _norms(self, family: Family) -> Iterator[Reason]:
        kinds = {trait.kind for trait in self.base.traits()}
        if family.norms and family.norms not in kinds:
            where = "over all heads" if family.norms == WIDE_NORMS else "head by head"
            blurs = not kinds & {HEAD_NORMS, WIDE_NORMS}
            yield Reason(f"it normalises queries and keys {where}, and the base does not", blurs)

    def _shared(self, family: Family) -> Iterator[Reason]:
        shared, own = self.recipe.shared, family.shared
        if not shared:
            return
        if own is None:
            yield Reason("it has no shared experts")
            return
        widths = {each.inner for each in self.shared}
        inner = self.experts[0].inner or 1
        if own.most and len(shared) > own.most:
            yield Reason(f"it has one shared expert, not {len(shared)}")
        if own.gate is None and any(each.positive or each.negative for each in shared):
            yield Reason("its shared experts have no gate, so that prompts mean nothing to them")
        if own.gate and self.recipe.gate_mode not in RANDOM and not all(each.positive for each in shared):
            yield Reason("its shared expert has a gate, which needs `positive_prompts`")
        if len(widths) > 1:
            yield Reason("shared experts that are put together are of one width")
        if own.whole and any(width % inner for width in widths):
            yield Reason(f"its shared experts are as wide as routed ones ({inner}), or several times as wide")


def _short(family: Family) -> str:
    """How a recipe names a family."""
    return family.spellings[0]
