"""The language of raw merges as a table: the recipe language without what models with a config have."""

from __future__ import annotations

from mergekit.errors import Findings
from mergekit.plan import VOCABULARY
from mergekit.plan.parameters import levels
from mergekit.recipe import Address, Filtered, Gradient, ModelRef, Recipe, Setting, read_recipe
from mergekit.recipe.assembly import build_list, build_source
from mergekit.recipe.forms import Many, Text
from mergekit.recipe.language import MODEL_ENTRY, RECIPE
from mergekit.recipe.records import Key, Record


def _literally(text: str) -> ModelRef:
    return ModelRef(Address(text))


_PATH = Text("the path of a checkpoint", _literally, "the path of a file or a folder, taken literally")
_ENTRY = Record(
    "an entry of `models`",
    (
        Key("model", _PATH, "file or folder of the checkpoint", required=True, known=("path",)),
        *(key for key in MODEL_ENTRY.keys if key.name == "parameters"),
    ),
    build_source,
    main="model",
)
_OWN = {
    "models": Key("models", Many(_ENTRY, "a list of checkpoints"), "checkpoints to merge", required=True),
    "base_model": Key("base_model", _PATH, "the checkpoint that the others are compared with", known=("base",)),
}
_COMMON = ("merge_method", "parameters", "dtype", "out_dtype", "on_shape_mismatch")

RAW = Record(
    "the top level of the recipe",
    tuple(_OWN.get(key.name, key) for key in RECIPE.keys if key.name in (*_OWN, *_COMMON)),
    build_list,
)
"""Every key of a recipe for raw checkpoints."""


def read_raw(text: str, *, file: str | None = None) -> tuple[Recipe | None, Findings]:
    r"""Read a recipe for raw checkpoints and report every mistake in its structure at once.

    Parameters:
        text: the recipe, one YAML document.
        file: name of the file, for messages.

    Returns:
        The recipe, or None if it cannot be read; and the findings. Bad input is never raised.

    Example:
        >>> recipe, _ = read_raw("merge_method: linear\nmodels: [{model: run@7+8.pt}, {model: b.safetensors}]")
        >>> [entry.model.model.path for entry in recipe.models]
        ['run@7+8.pt', 'b.safetensors']
    """
    recipe, findings = read_recipe(text, file=file, vocabulary=VOCABULARY, language=RAW)
    if recipe is not None:
        _refuse_gradients(recipe, findings)
    return recipe, findings


def _refuse_gradients(recipe: Recipe, findings: Findings) -> None:
    for level in levels(recipe):
        for name, setting in level.parameters.settings.items():
            if _has_gradient(setting):
                findings.error(
                    f"`{name}` has a list of values, and there are no layers here to spread them over",
                    recipe.place(f"{level.parameters.path}.{name}"),
                    "one value, or values by filter: `[{filter: encoder, value: 0.3}, {value: 0.5}]`",
                )


def _has_gradient(setting: Setting) -> bool:
    if isinstance(setting, Filtered):
        return any(isinstance(case.value, Gradient) for case in setting.cases)
    return isinstance(setting, Gradient)
