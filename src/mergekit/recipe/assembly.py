"""From the values of records to the typed recipe, with the checks that no single value can know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mergekit.recipe.model import (
    Module,
    OtherToken,
    Parameters,
    Recipe,
    SameToken,
    Slice,
    Source,
    TokenEntry,
    TokenizerSetting,
    TokenizerSource,
    TokenSource,
    ZeroRow,
)
from mergekit.recipe.records import Fields
from mergekit.recipe.references import Address, ModelRef
from mergekit.recipe.settings import Case, Constant

CONTENT = ("models", "slices", "modules")
RULES = ("on_missing", "on_shape_mismatch")
_YES = Constant(True)  # old recipes have it among the parameters


def build_address(fields: Fields) -> Address | None:
    """Make an address."""
    if fields.broken("path", "revision"):
        return None
    return Address(fields.values["path"], fields.optional("revision"))


def build_reference(fields: Fields) -> ModelRef | None:
    """Make a model reference."""
    if fields.broken("model", "lora", "override_architecture"):
        return None
    return ModelRef(fields.values["model"], fields.optional("lora"), fields.optional("override_architecture"))


def build_same_token(fields: Fields) -> TokenSource | None:
    """Make the source of a token that is taken from the same token."""
    model = build_reference(fields)
    return None if model is None else SameToken(model)


def build_other_token(fields: Fields) -> TokenSource | None:
    """Make the source of a token that is another token or zero."""
    if fields.broken("kind", "model", "token", "token_id"):
        return None
    given = [name for name in ("model", "token", "token_id") if name in fields.values]
    if fields.values["kind"] == "zero":
        if given:
            fields.error("a zero row has no model and no token", "`kind: zero` alone")
        return ZeroRow()
    if given not in (["model", "token"], ["model", "token_id"]):
        written = " and ".join(f"`{name}`" for name in given) or "nothing else"
        expected = "`model`, and exactly one of `token` and `token_id`"
        fields.error(f"a row of another token is given by {written}", expected)
        return None
    return OtherToken(fields.values["model"], fields.values[given[1]])


def build_token(fields: Fields) -> TokenEntry | None:
    """Make what is said about a token."""
    if fields.broken("source", "force"):
        return None
    return TokenEntry(fields.optional("source"), bool(fields.optional("force")), fields.path)


def build_tokenizer(fields: Fields) -> TokenizerSetting | None:
    """Make the tokenizer setting."""
    if fields.broken("source", "tokens", "pad_to_multiple_of"):
        return None
    source: TokenizerSource = fields.optional("source") or "union"
    return TokenizerSetting(source, fields.optional("tokens") or {}, fields.optional("pad_to_multiple_of"), fields.path)


def _parameters(fields: Fields) -> Parameters:
    written: Parameters | None = fields.optional("parameters")
    return written or Parameters({}, f"{fields.path}.parameters".removeprefix("."))


def build_source(fields: Fields) -> Source | None:
    """Make an entry of `models` or a source of a slice."""
    if fields.broken("model", "revision"):
        return None
    return Source(_revised(fields), fields.optional("layer_range"), _parameters(fields), fields.path)


def _revised(fields: Fields) -> ModelRef:
    """Return the model of an entry, at the revision that stands beside it."""
    model: ModelRef = fields.values["model"]
    revision: str | None = fields.optional("revision")
    if revision is None:
        return model
    if model.model.revision not in (None, revision):
        fields.error(f"the model has two revisions, `{model.model.revision}` and `{revision}`", "one of them")
    return replace(model, model=replace(model.model, revision=revision))


def build_slice(fields: Fields) -> Slice | None:
    """Make a slice."""
    if fields.broken("sources", "base_model"):
        return None
    sources: tuple[Source, ...] = fields.values["sources"]
    if not sources:
        fields.error("a slice has no sources", "at least one source, `- model: NAME` with `layer_range: [start, end]`")
        return None
    _check_lengths(fields, sources)
    _check_repeats(fields, sources)
    return Slice(sources, fields.optional("base_model"), _parameters(fields), fields.path)


def _check_lengths(fields: Fields, sources: tuple[Source, ...]) -> None:
    lengths = [(len(source.layers), source.model) for source in sources if source.layers is not None]
    if len({length for length, _ in lengths}) > 1:
        listed = ", ".join(f"{length} of `{model}`" for length, model in lengths)
        expected = "ranges of one length: an output layer takes one layer of every source"
        fields.error(f"the sources of a slice have different numbers of layers: {listed}", expected)


def _check_repeats(fields: Fields, sources: tuple[Source, ...]) -> None:
    first: dict[ModelRef, Source] = {}
    for source in sources:
        earlier = first.setdefault(source.model, source)
        if earlier is not source:
            what = f"the model is listed twice: `{source.model}`"
            expected = f"every model once; `{earlier.path}` is the same model"
            fields.error(what, expected, "removing one of the two", source.path)


def build_module(fields: Fields) -> Module | None:
    """Make a module; its name is the key that it stands under."""
    content = _content(fields, CONTENT[:2])
    if content is None:
        return None
    models, slices, _ = content
    name = fields.path.partition(".")[2]
    return Module(name, models, slices, _parameters(fields), fields.path)


def build_list(fields: Fields) -> Recipe | None:
    """Make a recipe, without its text, in a language that knows a list of models and nothing else."""
    if fields.optional("models") == ():
        fields.error("there is nothing to merge", "`models:` with a list of `- model: PATH`", path="models")
        return None
    return build_recipe(fields)


def build_recipe(fields: Fields) -> Recipe | None:
    """Make a recipe without its text."""
    content = _content(fields, CONTENT)
    legacy = fields.optional("tokenizer_source")
    if "tokenizer" in fields.values and "tokenizer_source" in fields.values:
        fields.error(
            "`tokenizer` and `tokenizer_source` are both given",
            "one of them",
            f"`tokenizer: {{source: {legacy}}}` and no `tokenizer_source`",
            "tokenizer_source",
        )
    if content is None or fields.broken("merge_method", "base_model"):
        return None
    models, slices, modules = content
    return Recipe(
        method=fields.values["merge_method"],
        base_model=fields.optional("base_model"),
        models=models,
        slices=slices,
        modules=tuple(modules.values()),
        parameters=_parameters(fields),
        dtype=fields.optional("dtype"),
        out_dtype=fields.optional("out_dtype"),
        tokenizer=fields.optional("tokenizer") or (legacy and TokenizerSetting(legacy, {}, None, "tokenizer_source")),
        chat_template=fields.optional("chat_template"),
        text="",
        file=None,
        lines={},
        embed_slerp=bool(fields.optional("embed_slerp")) or _parameters(fields).settings.get("embed_slerp") == _YES,
        rules={name: fields.values[name] for name in RULES if fields.optional(name)},
    )


def _content(
    fields: Fields, names: tuple[str, ...]
) -> tuple[tuple[Source, ...], tuple[Slice, ...], dict[str, Module]] | None:
    """Return models, slices and modules after checking that exactly one of them is filled."""
    models, slices, modules = fields.optional("models"), fields.optional("slices"), fields.optional("modules")
    filled = [name for name in names if fields.broken(name) or fields.optional(name)]
    expected = f"exactly one of {_listed(names)}"
    if not filled:
        fields.error("there is nothing to merge", expected, "`models:` with a list of `- model: NAME`")
    elif len(filled) > 1 and not (filled == ["models", "slices"] and _only_repeats(fields)):
        hint = "removing `models`" if filled == ["models", "slices"] else None
        fields.error(f"{_listed(filled)} are given together", expected, hint)
    if models:
        _check_repeats(fields, models)
    if not filled or fields.broken(*names):
        return None
    return (() if slices else models or ()), slices or (), modules or {}


def _only_repeats(fields: Fields) -> bool:
    """Tell whether `models` says nothing that `slices` does not say; then it is left aside with a notice."""
    if fields.broken("models", "slices"):
        return True
    known = {source.model for piece in fields.values["slices"] for source in piece.sources}
    repeats = all(entry.model in known and not entry.parameters.settings for entry in fields.values["models"])
    if repeats:
        fields.reading.findings.notice("`models` only repeats the models of `slices` and is left aside")
    return repeats


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(f"`{name}`" for name in names).rsplit(", ", 1))


def build_case(fields: Fields) -> Case | None:
    """Make a case of a conditional setting."""
    if fields.broken("filter", "value"):
        return None
    return Case(fields.optional("filter"), fields.values["value"])
