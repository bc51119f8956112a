"""Recipes in Python programs: read and checked, from YAML or from what a YAML library made of it.

Example:
    >>> import yaml
    >>> content = yaml.safe_load("{merge_method: linear, models: [{model: org/name}]}")
    >>> MergeConfiguration.model_validate(content).merge_method
    'linear'
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import yaml

from mergekit.errors import Findings
from mergekit.recipe import ModelRef, Recipe, Slice, Source, read_recipe

UNNAMED = "<recipe>"
"""What messages call a recipe that came from no file."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class MergeConfiguration:
    r"""A recipe whose structure is checked; whether its models are there is seen when a merge is planned.

    Parameters:
        recipe: the recipe in full.

    Example:
        >>> config = MergeConfiguration.from_yaml("merge_method: linear\nmodels: [{model: org/de}, {model: org/es}]")
        >>> [str(entry.model) for entry in config.models]
        ['org/de', 'org/es']
        >>> MergeConfiguration.model_validate({"merge_method": "linear", "models": [{"modle": "org/de"}]})
        Traceback (most recent call last):
        ...
        mergekit.errors.RecipeError: unknown key `modle` in an entry of `models`
          at models[0].modle (<recipe>:3)
          expected one of `model`, `revision`, `parameters`
          try `model`
    """

    recipe: Recipe

    @classmethod
    def model_validate(cls, content: object) -> MergeConfiguration:
        """Read a recipe from mappings, lists, text and numbers.

        Values of NumPy and torch count as what they hold, and paths as text. Lines in messages are those of
        :meth:`to_yaml`.

        Parameters:
            content: the recipe, as ``yaml.safe_load`` returns it, or a `MergeConfiguration`, which is returned.

        Raises:
            RecipeError: it has mistakes; all of them are in the error.
        """
        return content if isinstance(content, MergeConfiguration) else cls.from_yaml(rendered(content))

    @classmethod
    def from_yaml(cls, text: str, file: str | None = None) -> MergeConfiguration:
        """Read a recipe from its text.

        Parameters:
            text: the recipe, YAML.
            file: its name, for messages.

        Raises:
            RecipeError: it has mistakes; all of them are in the error.
        """
        from mergekit.plan import VOCABULARY

        recipe, findings = read_recipe(text, file=file or UNNAMED, vocabulary=VOCABULARY)
        findings.raise_errors()
        if recipe is None:
            raise AssertionError("what cannot be read is an error")
        return cls(recipe)

    def __repr__(self) -> str:
        return f"{type(self).__name__}.from_yaml({self.to_yaml()!r})"

    def to_yaml(self) -> str:
        """The recipe's text."""
        return self.recipe.text

    def model_dump(self) -> dict[str, Any]:
        """The recipe as mappings, lists, text and numbers."""
        content: dict[str, Any] = yaml.safe_load(self.recipe.text)
        return content

    @property
    def merge_method(self) -> str:
        """Name of the method."""
        return self.recipe.method

    @property
    def base_model(self) -> ModelRef | None:
        """The model that others are compared with; ``str`` of it is its path."""
        return self.recipe.base_model

    @property
    def models(self) -> tuple[Source, ...] | None:
        """Whole models to merge, each with its `model`; None if the recipe has slices or modules."""
        return self.recipe.models or None

    @property
    def slices(self) -> tuple[Slice, ...] | None:
        """Output slices, each with its `sources`; None if the recipe has none."""
        return self.recipe.slices or None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameters for everything, as they are written."""
        return self.model_dump().get("parameters") or {}

    @property
    def dtype(self) -> str | None:
        """Dtype to cast to, without ``torch.``."""
        return self.recipe.dtype

    @property
    def out_dtype(self) -> str | None:
        """Dtype to write instead of `dtype`."""
        return self.recipe.out_dtype

    @property
    def chat_template(self) -> str | None:
        """Name or text of a chat template."""
        return self.recipe.chat_template

    def referenced_models(self) -> tuple[ModelRef, ...]:
        """Every model that takes part, the base first, once each."""
        return self.recipe.references()


def rendered(content: object) -> str:
    """The YAML of mappings, lists, text and numbers.

    Raises:
        RecipeError: something in there is none of these; all such things are in the error.

    Example:
        >>> print(rendered({"merge_method": "linear", "models": [{"model": "org/name"}]}), end="")
        merge_method: linear
        models:
        - model: org/name
    """
    findings = Findings()
    plain = _plain(content, "", findings)
    findings.raise_errors()
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def _plain(value: Any, path: str, findings: Findings) -> object:
    """A value in the types of YAML, each made anew: what stands in two places would be written as an alias."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _plain(entry, f"{path}.{key}" if path else str(key), findings) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{path}[{index}]", findings) for index, entry in enumerate(value)]
    if isinstance(value, str | os.PathLike):
        return str.__str__(os.fspath(value))
    if value is not None and not isinstance(value, bool | int | float):
        what = f"a `{type(value).__name__}` cannot stand in a recipe"
        findings.error(what, path, "text, a number, true, false, a list or a mapping")
    return value
