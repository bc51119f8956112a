"""The recipe language as a table: every key, what its value may be, what it does.

Both the reader and the JSON Schema follow this table; `assembly.py` makes the typed recipe of what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mergekit.recipe.assembly import (
    CONTENT,
    build_address,
    build_case,
    build_module,
    build_other_token,
    build_recipe,
    build_reference,
    build_same_token,
    build_slice,
    build_source,
    build_token,
    build_tokenizer,
)
from mergekit.recipe.forms import Choice, Either, Flag, Form, Many, Named, T, Text, Whole, is_table
from mergekit.recipe.grammar import Layers, ParameterTable, Series, Settings, Word
from mergekit.recipe.model import SameToken, TokenizerSource, TokenSource
from mergekit.recipe.nodes import Leaf, Node, Table
from mergekit.recipe.records import Fields, Key, Record
from mergekit.recipe.references import Address, ModelRef

METHOD_FILE = r".+\.py:\w+"
_KINDS = frozenset({"model_token", "zero"})
_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64"})
_OTHER_DTYPES = {
    **dict.fromkeys(("bf16", "brain"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
}
_RULES = frozenset({"error", "base", "skip", "crop"})
_OTHER_RULES = {
    **dict.fromkeys(("raise", "fail", "refuse", "strict"), "error"),
    **dict.fromkeys(("donor", "keep", "copy"), "base"),
    **dict.fromkeys(("ignore", "drop", "omit", "leave_out"), "skip"),
    **dict.fromkeys(("cut", "truncate", "trim"), "crop"),
}
_NO_CROP = {"crop": "`crop` is not possible where there is no tensor"}
_NO_INTEGERS = {"int64": "`int64` is not possible: weights merged as whole numbers would nearly all be 0"}
_FOREIGN = {
    "experts": "mixture-of-experts recipes are built by mergekit-moe, or mergekit.moe.build_moe in Python",
    "genome": "evolution recipes are run by mergekit-evolve, or `mergekit evolve`",
}
_WRITTEN_REFERENCE = "`PATH`, `PATH@REVISION` or `PATH+ADAPTER`"
_WRITTEN_TOKENIZER = f"`union`, `base`, {_WRITTEN_REFERENCE}"


def foreign(root: Node) -> str | None:
    """Return why a document is no recipe of ours, if it is one for another tool."""
    if not isinstance(root, Table):
        return None
    method = root.entries.get("merge_method")
    if isinstance(method, Leaf) and method.text == "moe":
        return _FOREIGN["experts"]
    return next((reason for key, reason in _FOREIGN.items() if key in root.entries), None)


def _filled(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("the text is empty" if "\0" not in text else "the text has a null character")
    return text


def _any_text(text: str) -> str:
    return text


def _tokenizer_source(text: str) -> TokenizerSource:
    whole: dict[str, TokenizerSource] = {"union": "union", "base": "base"}
    return whole.get(text) or ModelRef.parse(text)


def _legacy_source(text: str) -> TokenizerSource:
    return ModelRef.parse(text.removeprefix("model:")) if text.startswith("model:") else _tokenizer_source(text)


def _token_of(text: str) -> TokenSource:
    if text == "zero":
        raise ValueError("`zero` alone would be the name of a model; a row of zeros is `source: {kind: zero}`")
    return SameToken(ModelRef.parse(text))


def _names_token(node: Node) -> bool:
    return isinstance(node, Table) and bool(node.entries.keys() & {"kind", "token", "token_id"})


ADDRESS: Form[Address] = Either(
    "a path or hub name",
    Record(
        "a model address",
        (
            Key(
                "path",
                Text("a path or hub name", _filled),
                "folder or hub name; may contain `@` and `+`",
                required=True,
            ),
            Key("revision", Text("a revision", _filled), "branch, tag or commit on the hub"),
        ),
        build_address,
    ),
    Text("a path or hub name", Address.parse, "`PATH` or `PATH@REVISION`", r"[^@]+(@[^@]+)?"),
    is_table,
)

_REFERENCE_KEYS = (
    Key("model", ADDRESS, "path or hub name of the model", required=True, known=("path",)),
    Key("lora", ADDRESS, "path or hub name of a LoRA adapter that is applied to the model", known=("adapter",)),
    Key(
        "override_architecture",
        Text("a class name", _filled),
        "class name that replaces the one in the model's config.json",
        known=("architecture",),
    ),
)
_REFERENCE_TEXT = r"[^@+]+(@[^@+]+)?(\+[^@+]+(@[^@+]+)?)?"


def _referring(noun: str, build: Callable[[Fields], T | None], parse: Callable[[str], T], text: str) -> Form[T]:
    written = Text(noun, parse, text, _REFERENCE_TEXT)
    return Either(noun, Record("a model reference", _REFERENCE_KEYS, build), written, is_table)


REFERENCE = _referring("a model reference", build_reference, ModelRef.parse, _WRITTEN_REFERENCE)

_FILTER = Key(
    "filter",
    Text("a filter", _any_text, "one piece of text that tensor names contain; one case for every filter"),
    "text that the tensor's name contains; without it, or with `*`, the value is for every tensor",
)


def _settings(noun: str, value: Form[Any], written: str, example: str) -> Settings:
    key = Key("value", value, "the value for the tensors that the filter matches", required=True)
    case = Record("a conditional setting", (key, _FILTER), build_case)
    return Settings(noun, value, case, f"{written}, or conditional settings such as `{example}`")


def _rule(noun: str, words: frozenset[str], refused: Mapping[str, str]) -> Settings:
    known = {other: word for other, word in _OTHER_RULES.items() if word in words}
    value = Word(noun, Choice(noun, words, known=known, refused=refused))
    return _settings(noun, value, value.expected, "[{filter: embed_tokens, value: base}, {value: error}]")


SETTING = _settings("a setting", Series(), "a value, a list of values", "[{filter: mlp, value: 0.3}, {value: 0.5}]")
_PARAMETERS = ParameterTable(SETTING)
_MISSING_RULE = _rule("a rule for missing tensors", _RULES - {"crop"}, _NO_CROP)
_SHAPE_RULE = _rule("a rule for tensors of unequal shapes", _RULES, {})


def _parameters_for(what: str) -> Key:
    return Key("parameters", _PARAMETERS, f"settings for {what}", known=("params",))


_MODEL = Key("model", REFERENCE, "the model", required=True)
_REVISION = Key("revision", Text("a revision", _filled), "branch, tag or commit of the model on the hub")

MODEL_ENTRY = Record(
    "an entry of `models`", (_MODEL, _REVISION, _parameters_for("this model only")), build_source, main="model"
)
SLICE_SOURCE = Record(
    "a source of a slice",
    (
        _MODEL,
        _REVISION,
        Key(
            "layer_range",
            Layers(),
            "layers to take, `[start, end]`, counted from 0; `end` is not included",
            required=True,
            known=("layers", "range"),
        ),
        _parameters_for("this model in this slice only"),
    ),
    build_source,
    main="model",
)
SLICE = Record(
    "a slice",
    (
        Key("sources", Many(SLICE_SOURCE, "a list of sources"), "the models with the layers to take", required=True),
        Key("base_model", REFERENCE, "base model for this slice instead of the recipe's", known=("base",)),
        _parameters_for("this slice"),
    ),
    build_slice,
)

_MODELS = Key("models", Many(MODEL_ENTRY, "a list of models"), "whole models to merge")
_SLICES = Key("slices", Many(SLICE, "a list of slices"), "runs of layers to stack, each merged from its sources")

MODULE = Record("a module", (_MODELS, _SLICES, _parameters_for("this module")), build_module)

TOKEN_SOURCE: Form[TokenSource] = Either(
    "the source of a token",
    Record(
        "the source of a token",
        (
            Key("kind", Choice("a kind of source", _KINDS), "`model_token` or `zero`", required=True),
            Key("model", REFERENCE, "model that has the other token"),
            Key("token", Text("the text of a token", _any_text), "text of the other token"),
            Key("token_id", Whole("a token id (a whole number from 0)", 0), "id of the other token"),
        ),
        build_other_token,
    ),
    _referring("the source of a token", build_same_token, _token_of, _WRITTEN_REFERENCE),
    _names_token,
)
TOKEN = Record(
    "an entry of `tokens`",
    (
        Key("source", TOKEN_SOURCE, "where the embedding of this token comes from"),
        Key("force", Flag(), "whether models that know the token get this embedding, too"),
    ),
    build_token,
    main="source",
)
TOKENIZER = Record(
    "a tokenizer setting",
    (
        Key(
            "source",
            _referring(
                "the source of a tokenizer",
                build_reference,
                _tokenizer_source,
                _WRITTEN_TOKENIZER,
            ),
            "`union` of all vocabularies (the default), `base`, or a model",
        ),
        Key("tokens", Named(TOKEN, "a mapping of tokens"), "token text to what is said about the token"),
        Key(
            "pad_to_multiple_of",
            Whole("a whole number from 1", 1),
            "pad the vocabulary with unused rows to a multiple of so many",
        ),
    ),
    build_tokenizer,
    main="source",
)

DTYPE = Choice("a dtype for weights", _DTYPES, "torch.", None, _OTHER_DTYPES, _NO_INTEGERS)

RECIPE = Record(
    "the top level of the recipe",
    (
        Key(
            "merge_method",
            Choice("a merge method", None, others=METHOD_FILE, other="./file.py:Name"),
            "how the models are merged: a method's name, or `./file.py:Name` for one of your own",
            required=True,
            known=("method",),
        ),
        Key(
            "base_model",
            REFERENCE,
            "the model that the others are compared with, and the donor of config and tokenizer",
            known=("base",),
        ),
        _MODELS,
        _SLICES,
        Key("modules", Named(MODULE, "a mapping of modules"), "what to merge into each module of a model with several"),
        _parameters_for("the whole recipe"),
        Key(
            "on_missing",
            _MISSING_RULE,
            "what is done about a tensor that some model lacks: `error` (the default), `base` takes the base's, `skip` "
            "merges those of the other models",
            known=("missing",),
        ),
        Key(
            "on_shape_mismatch",
            _SHAPE_RULE,
            "what is done about a tensor whose shapes differ: `error` (the default), `base` takes the base's, `skip` "
            "merges those of the base's shape, `crop` cuts all of them to what they share",
            known=("on_mismatch", "shape_mismatch"),
        ),
        Key("dtype", DTYPE, "dtype of the merged weights", known=("torch_dtype",)),
        Key("out_dtype", DTYPE, "dtype to write, where it differs from `dtype`"),
        Key("tokenizer", TOKENIZER, "which tokenizer the merged model gets"),
        Key(
            "tokenizer_source",
            _referring("the source of a tokenizer", build_reference, _legacy_source, _WRITTEN_TOKENIZER),
            "older spelling of `tokenizer: {source: ...}`",
        ),
        Key(
            "embed_slerp",
            Flag(),
            "whether two models' tensors with a row per token are merged by SLERP, whatever the method is",
        ),
        Key(
            "chat_template",
            Text("a chat template", _filled),
            "name of a built-in chat template, or Jinja text, or `auto`",
        ),
    ),
    build_recipe,
    rules={"anyOf": [{"required": [name]} for name in CONTENT]},
)
