"""The places of a recipe where a model is meant, and nothing but these."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit.recipe import ModelRef, OtherToken, Recipe, SameToken


def references(recipe: Recipe) -> Iterator[tuple[str, ModelRef]]:
    r"""Every reference to a model, with its path: entries, sources of slices, bases, those of tokenizer and tokens.

    Names of methods, dtypes, parameters and filters are none.

    Parameters:
        recipe: the recipe.

    Example:
        >>> from mergekit.recipe import Vocabulary, read_recipe
        >>> names = Vocabulary(frozenset({"linear"}), frozenset())
        >>> recipe, _ = read_recipe("merge_method: linear\nmodels: [{model: linear}]", vocabulary=names)
        >>> [(path, str(ref)) for path, ref in references(recipe)]
        [('models[0].model', 'linear')]
    """
    if recipe.base_model is not None:
        yield "base_model", recipe.base_model
    for source in recipe.every_source():
        yield f"{source.path}.model", source.model
    for piece in recipe.every_slice():
        if piece.base_model is not None:
            yield f"{piece.path}.base_model", piece.base_model
    if recipe.tokenizer is not None:
        owner, path = recipe.tokenizer.source, recipe.tokenizer.path
        if isinstance(owner, ModelRef):
            yield f"{path}.source" if path == "tokenizer" else path, owner
        for entry in recipe.tokenizer.tokens.values():
            if isinstance(entry.source, SameToken | OtherToken):
                yield f"{entry.path}.source", entry.source.model
