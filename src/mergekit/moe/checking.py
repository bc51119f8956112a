"""Whether a mixture recipe makes sense, before and after its models are opened."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit.errors import Findings
from mergekit.moe.dense import Dense
from mergekit.moe.language import PROMPTED, Expert, MoeRecipe

SAME = "--i-understand-this-is-not-useful-without-training"


def check_recipe(recipe: MoeRecipe, findings: Findings, same_allowed: bool) -> None:
    """Report what is wrong with numbers and prompts.

    Parameters:
        recipe: the recipe.
        findings: where mistakes and remarks are recorded.
        same_allowed: whether all experts may be one model.
    """
    count = len(recipe.experts)
    if recipe.experts_per_token and recipe.experts_per_token > count:
        what = f"each token is to go to {recipe.experts_per_token} experts, and there are {count}"
        findings.error(what, recipe.place("experts_per_token"), f"1 to {count}")
    if recipe.gate_mode in PROMPTED and count > 1:
        _check_prompts(recipe, findings)
        _check_models(recipe, findings, same_allowed)
    if recipe.gate_mode not in PROMPTED and any(_prompts(each) != ((), ()) for each in _all(recipe)):
        findings.warn(f"prompts have no effect: `gate_mode` is `{recipe.gate_mode}`", recipe.place("gate_mode"))


def _all(recipe: MoeRecipe) -> tuple[Expert, ...]:
    return (*recipe.experts, *recipe.shared)


def _prompts(expert: Expert) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return expert.positive, expert.negative


def _check_prompts(recipe: MoeRecipe, findings: Findings) -> None:
    for expert in recipe.experts:
        if not expert.positive:
            findings.error(
                f"the expert has no prompts, and `gate_mode: {recipe.gate_mode}` makes routers of them",
                recipe.place(expert.path),
                "`positive_prompts:` with a list of texts",
                "`gate_mode: random`, which needs none",
            )
    known: dict[tuple[tuple[str, ...], tuple[str, ...]], Expert] = {}
    for expert in recipe.experts:
        first = known.setdefault(_prompts(expert), expert)
        if first is not expert and expert.positive:
            what = f"the expert has the prompts of `{first.path}`: the router cannot tell them apart"
            findings.warn(what, recipe.place(expert.path))
    if len(known) == 1 and recipe.experts[0].positive:
        what = "all experts have the same prompts, so that no router can tell them apart"
        findings.error(what, recipe.place("experts"), "prompts of its own for each expert", "`gate_mode: random`")


def _check_models(recipe: MoeRecipe, findings: Findings, same_allowed: bool) -> None:
    if not same_allowed and len({expert.model for expert in recipe.experts}) == 1:
        findings.error(
            f"all experts are {recipe.experts[0].model}: prompts make no difference between equal experts",
            recipe.place("experts"),
            hint=f"`{SAME}` if the mixture is to be trained, or `gate_mode: random`",
        )


def check_models(
    recipe: MoeRecipe, base: Dense, experts: Sequence[Dense], shared: Sequence[Dense], findings: Findings
) -> None:
    """Report experts that do not go together with the base, or with each other.

    Parameters:
        recipe: the recipe.
        base: the donor of everything but experts.
        experts: the models of `recipe.experts`.
        shared: the models of `recipe.shared`.
        findings: where mistakes and remarks are recorded.
    """
    if base.has_experts:
        findings.error(f"{base.model.ref} is a mixture of experts already", recipe.place("base_model"), "a dense model")
    if base.model.embedding is None:
        findings.error(f"{base.model.ref} has no input embedding", recipe.place("base_model"), "a language model")
    for expert, dense in zip(_all(recipe), (*experts, *shared), strict=True):
        _check_expert(recipe, expert, dense, base, findings)
    known: dict[int, Expert] = {}
    for expert, dense in zip(recipe.experts, experts, strict=True):
        known.setdefault(dense.inner, expert)
    widths = [f"{inner} in {expert.model}" for inner, expert in known.items() if inner]
    if len(widths) > 1:
        what = f"the MLPs of the experts are of unequal width: {' and '.join(widths)}"
        findings.error(what, recipe.place("experts"), "experts of one width")


def _check_expert(recipe: MoeRecipe, expert: Expert, dense: Dense, base: Dense, findings: Findings) -> None:
    place = recipe.place(f"{expert.path}.source_model")
    for flaw in dense.mlp_flaws():
        findings.error(f"{expert.model} cannot be an expert: {flaw}", place)
    if len(dense.layers) != len(base.layers):
        what = f"{expert.model} has {len(dense.layers)} layers, and {base.model.ref} has {len(base.layers)}"
        findings.error(what, place, "as many layers as the base has")
    if dense.inner and dense.layers[0]["gate"].spec.shape[1] != base.width:
        what = f"{expert.model} is {dense.layers[0]['gate'].spec.shape[1]} wide, and {base.model.ref} {base.width}"
        findings.error(what, place, "`hidden_size` of the base")
    if dense.activation != base.activation:
        what = f"the MLPs of {expert.model} use `{dense.activation}`, and those of {base.model.ref} `{base.activation}`"
        findings.error(what, place, "the same `hidden_act` as the base's")
    if dense.vocabulary and dense.vocabulary != base.vocabulary:
        findings.warn(
            f"{expert.model} has a vocabulary of {dense.vocabulary} tokens, and {base.model.ref} of {base.vocabulary}: "
            "the output has the base's, and its experts see no token that only they knew",
            place,
        )
