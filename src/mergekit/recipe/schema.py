"""The recipe language as JSON Schema, for editors."""

from __future__ import annotations

from mergekit.recipe.forms import Json, Vocabulary
from mergekit.recipe.language import METHOD_FILE, RECIPE, SETTING

_SETTINGS: Json = {
    "scalar": {"type": ["boolean", "number", "string"]},
    "series": {
        "description": "one value, or a gradient: a list of values at equal distances over the layers",
        "anyOf": [{"$ref": "#/$defs/scalar"}, {"type": "array", "items": {"$ref": "#/$defs/scalar"}}],
    },
    "setting": {
        "description": "a value, a gradient, or conditional settings of which the first that matches decides",
        **SETTING.schema(),
    },
}


def recipe_schema(vocabulary: Vocabulary) -> dict[str, object]:
    """Return a JSON Schema (draft 2020-12) of recipes, with a description for every key.

    It knows less than :func:`read_recipe`, which also compares values with each other; and keys without effect,
    which are warnings there, are refused here, since an editor has no other way to mark them.

    Parameters:
        vocabulary: names of the methods and of their parameters.

    Example:
        >>> schema = recipe_schema(Vocabulary(frozenset({"linear", "ties"}), frozenset({"weight"})))
        >>> schema["$defs"]["method"]["anyOf"][0]["enum"]
        ['linear', 'ties']
    """
    setting = {"$ref": "#/$defs/setting"}
    parameters = dict.fromkeys(sorted(vocabulary.parameters), setting)
    own_method = {"type": "string", "pattern": f"^{METHOD_FILE}$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mergekit recipe",
        "description": "how to merge language models",
        **RECIPE.schema(),
        "$defs": {
            "method": {"anyOf": [{"enum": sorted({*vocabulary.methods, *vocabulary.installed()})}, own_method]},
            "parameters": {"type": "object", "properties": parameters, "additionalProperties": setting},
            **_SETTINGS,
        },
    }
