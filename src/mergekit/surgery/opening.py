"""The two models of a transplant, opened: headers, configs and tokens, no weight.

Public: :class:`Patient`, :class:`Donor`, :func:`open_patient`, :func:`open_donor`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import yaml

from mergekit.errors import Findings, MissingTensorError
from mergekit.plan import VOCABULARY, Model, Plan, PlanOptions, plan_merge
from mergekit.plan.models import open_models
from mergekit.plan.views import View
from mergekit.recipe import ModelRef, Recipe, read_recipe, reference
from mergekit.surgery.approximation import Role
from mergekit.surgery.tokens import Tokens, read_tokens


@final
@dataclass(frozen=True, slots=True)
class Patient:
    """The model that gets another tokenizer.

    Parameters:
        plan: of its copy.
        tokens: those that it has now.
    """

    plan: Plan
    tokens: Tokens

    @property
    def model(self) -> Model:
        """The model."""
        return self.plan.models[0]


@final
@dataclass(frozen=True, slots=True)
class Donor:
    """The model whose tokenizer is taken.

    Parameters:
        model: the model.
        tokens: its tokens.
    """

    model: Model
    tokens: Tokens

    def matrix(self, role: Role) -> View:
        """Its matrix for a purpose; the embedding also serves as head where there is none.

        Raises:
            MissingTensorError: it has no tensor that is known as its embedding.
        """
        model = self.model
        head = model.views.get(model.head) if role == "head" and model.head else None
        found = head or model.embedding
        if found is None or len(found.spec.shape) != 2:
            what = f"{model.ref} has no matrix that is known as its embedding"
            raise MissingTensorError(what, place=str(model.checkpoint.root))
        return found


def open_patient(name: str, options: PlanOptions) -> Patient:
    """Open the model that gets another tokenizer, and plan its copy.

    Parameters:
        name: as users name it.
        options: of the plan.

    Raises:
        MergekitError: see :func:`mergekit.plan.plan_merge`; or it has no tokenizer.
    """
    plan = plan_merge(_copying(reference(name)), file="MODEL", options=replace(options, copy_tokenizer=False))
    return Patient(plan, read_tokens(plan.models[0].checkpoint))


def open_donor(name: str, options: PlanOptions, findings: Findings) -> Donor:
    """Open the model whose tokenizer is taken.

    Parameters:
        name: as users name it.
        options: of the plan.
        findings: where remarks are recorded.

    Raises:
        MergekitError: it cannot be opened, or has no tokenizer.
    """
    recipe, own = read_recipe(_copying(reference(name)), file="DONOR", vocabulary=VOCABULARY)
    models = open_models(_known(recipe), own, hub=options.hub)
    own.raise_errors(options.strict)
    findings.extend(own)
    return Donor(models[0], read_tokens(models[0].checkpoint))


def _known(recipe: Recipe | None) -> Recipe:
    assert recipe is not None, "what is written here can be read"
    return recipe


def _copying(ref: ModelRef) -> str:
    """The recipe that copies a model, whatever characters its name has."""
    content = {"merge_method": "passthrough", "models": [{"model": ref.written()}]}
    return yaml.safe_dump(content, allow_unicode=True)
