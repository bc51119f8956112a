"""The language of bakllama: layers stacked from several models, read as a recipe."""

from __future__ import annotations

import math
from dataclasses import replace

from mergekit.plan import PlanOptions
from mergekit.recipe import Case, Constant, Filtered, ModelRef, Parameters, Recipe, Slice, Source
from mergekit.recipe.forms import Many, Text, Whole
from mergekit.recipe.language import REFERENCE
from mergekit.recipe.records import Fields, Key, Record

HALF = "float16"
"""What is written if half precision is asked for."""

_SCALED = "down_proj"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"`{text}` is not finite")
    return number


def _slice(model: ModelRef, layers: range, path: str, scale: float | None = None) -> Slice:
    settings = {} if scale is None else {"scale": Filtered((Case(_SCALED, Constant(scale)),))}
    return Slice((Source(model, layers, Parameters(settings, path), path),), None, Parameters({}, path), path)


def _build_slice(fields: Fields) -> Slice | None:
    if fields.broken("model", "start", "end", "scale"):
        return None
    start, end = fields.values["start"], fields.values["end"]
    if start >= end:
        fields.error(f"the layers from {start} to {end} are none", "`start` below `end`, which is not included")
        return None
    return _slice(fields.values["model"], range(start, end), fields.path, fields.optional("scale"))


_ENTRY = Record(
    "an entry of `layer_slices`",
    (
        Key("model", REFERENCE, "the model", required=True),
        Key("start", Whole("a whole number from 0", 0), "its first layer", required=True),
        Key("end", Whole("a whole number from 1", 1), "the layer behind the last one", required=True),
        Key("scale", Text("a number", _finite, "a number"), f"factor of the layers' `{_SCALED}`"),
    ),
    _build_slice,
)
_KEYS = (
    Key("layer_slices", Many(_ENTRY, "a list of slices"), "runs of layers to stack", required=True),
    Key("embedding_source", REFERENCE, "the model that gives what stands before the layers, config and tokenizer"),
    Key("lm_head_source", REFERENCE, "the model that gives what stands behind the layers"),
)


def bakllama_language(dtype: str | None = None) -> Record[Recipe]:
    """The keys of a bakllama config, which make a recipe for passthrough.

    What stands before and behind the layers comes from the first and the last slice; a source of its own is a slice
    without layers there.

    Parameters:
        dtype: of the output, or None.

    Example:
        >>> from mergekit.plan import VOCABULARY
        >>> from mergekit.recipe import read_recipe
        >>> text = "layer_slices: [{model: a, start: 0, end: 3}]" + chr(10) + "embedding_source: b"
        >>> recipe, _ = read_recipe(text, vocabulary=VOCABULARY, language=bakllama_language())
        >>> [(str(piece.sources[0].model), len(piece.sources[0].layers)) for piece in recipe.slices]
        [('b', 0), ('a', 3)]
    """

    def build(fields: Fields) -> Recipe | None:
        if fields.broken("layer_slices", "embedding_source", "lm_head_source"):
            return None
        if not fields.values["layer_slices"]:
            fields.error("there is no layer", "at least one slice", path="layer_slices")
            return None
        first, last = (
            [_slice(ref, range(0), name)] if (ref := fields.optional(name)) else []
            for name in ("embedding_source", "lm_head_source")
        )
        return Recipe(
            method="passthrough",
            base_model=None,
            models=(),
            slices=(*first, *fields.values["layer_slices"], *last),
            modules=(),
            parameters=Parameters({}, "parameters"),
            dtype=dtype,
            out_dtype=None,
            tokenizer=None,
            chat_template=None,
            text="",
            file=None,
            lines={},
        )

    return Record("the top level of the config", _KEYS, build)


def stacking(options: PlanOptions, dtype: str | None = None) -> PlanOptions:
    """The options with which a bakllama config is planned like a recipe; the report says so.

    Parameters:
        options: of planning.
        dtype: of the output, or None.
    """
    return replace(options, language=bakllama_language(dtype), noted={"bakllama": {"dtype": dtype}})
