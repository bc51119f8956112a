"""The language of adapter merges as a table, and what its methods mean to products of thin matrices."""

from __future__ import annotations

from pathlib import Path

from mergekit.errors import Findings
from mergekit.methods import Method
from mergekit.plan import VOCABULARY
from mergekit.recipe import Address, ModelRef, Recipe, read_recipe
from mergekit.recipe.assembly import build_list, build_source
from mergekit.recipe.forms import Many, Text
from mergekit.recipe.language import MODEL_ENTRY, RECIPE
from mergekit.recipe.records import Key, Record

EXACT = ("task_arithmetic", "linear", "model_stock", "nuslerp", "multislerp")
"""Methods that give the same as on the dense deltas: sums whose weights come from norms and angles."""

_WHOLE = "works on whole weights, and adapters hold only what is added to them"
REFUSED = {
    "slerp": (_WHOLE, "`nuslerp`, which goes along the arc between two deltas"),
    "karcher": (_WHOLE, "`multislerp`, which averages deltas on the sphere"),
    "nearswap": (_WHOLE, "`mergekit yaml`, with models BASE+ADAPTER"),
    "arcee_fusion": (_WHOLE, "`mergekit yaml`, with models BASE+ADAPTER"),
    "passthrough": ("merges nothing", "`task_arithmetic` with one adapter"),
}
"""Methods that adapters are not merged by: why, and what to try."""


def by_rows(method: Method) -> bool:
    """Whether a method looks at rows or columns of a matrix one by one, and so at those of the cores."""
    flat = getattr(method, "nuslerp_flatten", True)
    return not flat or bool(getattr(method, "filter_wise", False))


def is_exact(method: Method) -> bool:
    """Whether the merged cores stand for what the method makes of the dense deltas."""
    return method.name in EXACT and not by_rows(method)


def _named(text: str) -> ModelRef:
    return ModelRef(Address(text) if Path(text).expanduser().exists() else Address.parse(text))


_PATH = Text("an adapter", _named, "the folder of an adapter, or its name on the hub: PATH or PATH@REVISION")
_ENTRY = Record(
    "an entry of `models`",
    (
        Key("model", _PATH, "folder of the adapter", required=True, known=("path", "adapter", "lora")),
        *(key for key in MODEL_ENTRY.keys if key.name == "parameters"),
    ),
    build_source,
    main="model",
)
_MODELS = Key("models", Many(_ENTRY, "a list of adapters"), "adapters to merge", required=True, known=("adapters",))

ADAPTERS = Record(
    "the top level of the recipe",
    (
        *(key for key in RECIPE.keys if key.name == "merge_method"),
        _MODELS,
        *(key for key in RECIPE.keys if key.name in ("parameters", "dtype")),
    ),
    build_list,
)
"""Every key of a recipe for adapters."""


def read_adapters(text: str, *, file: str | None = None) -> tuple[Recipe | None, Findings]:
    r"""Read a recipe for adapters and report every mistake in its structure at once.

    Parameters:
        text: the recipe, one YAML document.
        file: name of the file, for messages.

    Returns:
        The recipe, or None if it cannot be read; and the findings. Bad input is never raised.

    Example:
        >>> recipe, _ = read_adapters("merge_method: ties\nmodels: [{model: org/de}, {model: org/es@v2}]")
        >>> [str(entry.model) for entry in recipe.models]
        ['org/de', 'org/es@v2']
    """
    recipe, findings = read_recipe(text, file=file, vocabulary=VOCABULARY, language=ADAPTERS)
    if recipe is not None and recipe.method in REFUSED:
        why, hint = REFUSED[recipe.method]
        findings.error(f"{recipe.method} {why}", recipe.place("merge_method"), hint=hint)
    if recipe is not None and recipe.dtype == "float64":
        findings.error("adapters are not written as float64", recipe.place("dtype"), "float32, bfloat16 or float16")
    return recipe, findings
