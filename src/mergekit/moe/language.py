"""The language of mixture recipes as a table: a base, experts with their prompts, and how routers are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mergekit.errors import Findings, Place
from mergekit.moe.prompts import prompts_in
from mergekit.recipe import ModelRef, Parameters, Recipe, Source, Vocabulary, coerce, read_document
from mergekit.recipe.forms import Choice, Either, Form, Json, Many, Reading, Text, Whole, scalar
from mergekit.recipe.kinds import METHOD
from mergekit.recipe.language import DTYPE, REFERENCE
from mergekit.recipe.nodes import Listing, Node
from mergekit.recipe.records import Fields, Key, Record

HIDDEN = ("hidden", "hidden_last", "hidden_avg")
PROMPTED = (*HIDDEN, "fitted", "cheap_embed")
RANDOM = ("random", "uniform_random")
GATE_MODES = (*PROMPTED, *RANDOM)
"""How the rows of routers are made."""


@dataclass(frozen=True, slots=True)
class Expert:
    """A model whose MLPs become an expert of every layer.

    Parameters:
        model: the model.
        positive: prompts that are to be routed to it.
        negative: prompts that are not.
        noise_scale: standard deviation of noise that is added to its matrices, or None.
        residual_scale: factor of what it adds to the residual stream, or None.
        path: where it stands in the recipe, ``experts[0]``.
    """

    model: ModelRef
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    noise_scale: float | None
    residual_scale: float | None
    path: str

    @property
    def altered(self) -> bool:
        """Whether its matrices are not taken as they are."""
        return bool(self.noise_scale) or self.residual_scale not in (None, 1.0)


@dataclass(frozen=True, slots=True)
class MoeRecipe:
    """A mixture recipe.

    Parameters:
        recipe: the models it names, as in any recipe: the base, then experts and shared experts in their order.
        experts: in the order of the router's rows.
        shared: experts that every token goes through.
        gate_mode: how the router's rows are made.
        experts_per_token: to how many experts a token is routed; None if it is not written.
        architecture: which family of models the output is to be of, or None.
    """

    recipe: Recipe
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]
    gate_mode: str
    experts_per_token: int | None
    architecture: str | None

    @property
    def base_model(self) -> ModelRef:
        """The donor of everything but experts."""
        assert self.recipe.base_model is not None
        return self.recipe.base_model

    @property
    def top_k(self) -> int:
        """Experts per token: two if it is not written, or the only one."""
        return self.experts_per_token or min(2, len(self.experts))

    def place(self, path: str) -> Place:
        """Where something stands."""
        return self.recipe.place(path)


@dataclass(frozen=True, slots=True)
class Number(Form[float]):
    """A number that is not below `low`."""

    noun: str
    low: float

    def _read(self, node: Node, reading: Reading) -> float | None:
        try:
            value = float(coerce(scalar(node), "float"))
        except ValueError:
            return self.refuse(node, reading)
        return value if value >= self.low else self.refuse(node, reading)

    def _schema(self) -> Json:
        return {"type": "number", "minimum": self.low}


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return text


def _is_list(node: Node) -> bool:
    return isinstance(node, Listing)


_ONE = Text("a prompt", _filled)
_NO_LIST: Form[tuple[str, ...]] = Text("prompts", lambda text: (_filled(text),), "one prompt")
_PROMPTS: Form[tuple[str, ...]] = Either("prompts", Many(_ONE, "a list of prompts"), _NO_LIST, _is_list)
_FILE = Text(
    "a file of prompts", prompts_in, "a text file with a prompt per line, or a .json file with a list of texts"
)


def _key(name: str, form: Form[object], about: str, *known: str) -> Key:
    return Key(name, form, about, known=known)


def _build_expert(fields: Fields) -> Expert | None:
    names = ("positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
    files = tuple(f"{name}_file" for name in names[:2])
    if fields.broken("source_model", *names, *files):
        return None
    written = [fields.optional(name) or () for name in (*names[:2], *files)]
    positive, negative = (*written[0], *written[2]), (*written[1], *written[3])
    scales = [fields.optional(name) for name in names[2:]]
    return Expert(fields.values["source_model"], positive, negative, scales[0], scales[1], fields.path)


EXPERT = Record(
    "an expert",
    (
        Key("source_model", REFERENCE, "the model whose MLPs become the expert", required=True, known=("model",)),
        Key("positive_prompts", _PROMPTS, "texts that are to be routed to this expert", known=("prompts", "prompt")),
        Key("positive_prompts_file", _FILE, "further ones, from a file", known=("prompts_file",)),
        Key("negative_prompts", _PROMPTS, "texts that are not to be routed to it"),
        Key("negative_prompts_file", _FILE, "further ones, from a file"),
        Key(
            "noise_scale",
            Number("a standard deviation (a number from 0)", 0.0),
            "standard deviation of normal noise that is added to the expert's matrices",
            known=("noise",),
        ),
        Key(
            "residual_scale",
            Number("a factor (a number from 0)", 0.0),
            "factor of what the expert adds to the residual stream: its down projection is multiplied by it",
            known=("scale",),
        ),
    ),
    _build_expert,
    main="source_model",
)


def _build(fields: Fields) -> MoeRecipe | None:
    experts: tuple[Expert, ...] = fields.optional("experts") or ()
    if fields.broken("base_model", "experts", "shared_experts", "gate_mode", "experts_per_token", "architecture"):
        return None
    if not experts:
        fields.error("there are no experts", "`experts:` with a list of `- source_model: PATH`", path="experts")
        return None
    shared: tuple[Expert, ...] = fields.optional("shared_experts") or ()
    sources = tuple(Source(each.model, None, Parameters({}, each.path), each.path) for each in (*experts, *shared))
    recipe = Recipe(
        method=METHOD,
        base_model=fields.values["base_model"],
        models=sources,
        slices=(),
        modules=(),
        parameters=Parameters({}, "parameters"),
        dtype=fields.optional("dtype"),
        out_dtype=None,
        tokenizer=None,
        chat_template=None,
        text="",
        file=None,
        lines={},
    )
    gate_mode = fields.optional("gate_mode") or "hidden"
    tokens, architecture = fields.optional("experts_per_token"), fields.optional("architecture")
    return MoeRecipe(recipe, experts, shared, gate_mode, tokens, architecture)


_MODES = {
    **dict.fromkeys(("hidden_mean", "hidden_average", "average", "avg"), "hidden_avg"),
    **dict.fromkeys(("embed", "embedding", "cheap"), "cheap_embed"),
    **dict.fromkeys(("uniform",), "uniform_random"),
    **dict.fromkeys(("last",), "hidden_last"),
    **dict.fromkeys(("fit", "probe", "regression", "trained"), "fitted"),
}

MOE = Record(
    "the top level of the recipe",
    (
        Key(
            "base_model",
            REFERENCE,
            "donor of everything but the experts: attention, norms, embeddings, config and tokenizer; and the model "
            "whose hidden states make the routers",
            required=True,
            known=("base",),
        ),
        Key("experts", Many(EXPERT, "a list of experts"), "the experts, in the order of the router", required=True),
        Key("shared_experts", Many(EXPERT, "a list of experts"), "experts that every token goes through"),
        Key(
            "gate_mode",
            Choice("a gate mode", frozenset(GATE_MODES), known=_MODES),
            "how the rows of the routers are made; `hidden` if it is not written",
            known=("gate", "router_mode"),
        ),
        Key(
            "experts_per_token",
            Whole("a number of experts (a whole number from 1)", 1),
            "to how many experts each token goes; 2 if it is not written",
            known=("num_experts_per_tok", "experts_per_tok", "top_k"),
        ),
        Key(
            "architecture",
            Text("an architecture", _filled, "the name of a family of mixtures, such as `mixtral` or `qwen3`"),
            "the family of models that the output is to be of; the nearest that fits if it is not written",
            known=("output_architecture", "target_architecture"),
        ),
        Key(
            "dtype",
            DTYPE,
            "dtype of the weights that are written; the base's if it is not",
            known=("torch_dtype", "out_dtype"),
        ),
        Key(
            "merge_method", Choice("the method of a mixture", frozenset({METHOD})), "may be `moe`, and changes nothing"
        ),
    ),
    _build,
)
"""Every key of a mixture recipe."""


def read_moe(text: str, *, file: str | None = None) -> tuple[MoeRecipe | None, Findings]:
    r"""Read a mixture recipe and report every mistake in its structure at once.

    Parameters:
        text: the recipe, one YAML document.
        file: name of the file, for messages.

    Returns:
        The recipe, or None if it cannot be read; and the findings. Bad input is never raised.

    Example:
        >>> found, _ = read_moe("base_model: a\ngate_mode: random\nexperts: [{source_model: b}, {source_model: c}]")
        >>> [str(expert.model) for expert in found.experts], found.top_k
        (['b', 'c'], 2)
    """
    vocabulary = Vocabulary(frozenset(), frozenset())
    document = read_document(text, file=file, vocabulary=vocabulary, language=MOE)
    found = document.meaning
    if found is None:
        return None, document.findings
    return replace(found, recipe=replace(found.recipe, text=text, file=file, lines=document.lines)), document.findings
