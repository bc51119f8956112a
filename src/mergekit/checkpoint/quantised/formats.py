"""The formats, as a table: which tensors go together, told by their names and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mergekit.checkpoint.quantised.bitsandbytes import eight_bits, four_bits
from mergekit.checkpoint.quantised.codes import Quantised
from mergekit.checkpoint.quantised.packed import packed_integers
from mergekit.checkpoint.quantised.parts import Parts
from mergekit.checkpoint.quantised.scaled import microscaled, scaled, unscaled
from mergekit.checkpoint.quantised.settings import Settings
from mergekit.checkpoint.tensors import Stored
from mergekit.errors import MissingTensorError, UnsupportedError

_FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_NO_CODES = frozenset({"F64", "F32", "F16", "BF16", "BOOL", "I64", "U64"})
_ANY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """How one format is told and read.

    Parameters:
        mark: ending of the tensor's name that tells the format.
        dtypes: dtypes of the tensor that holds the codes; none for any.
        codes: ending of that tensor's name.
        needed: endings of the other tensors that must be there.
        read: makes the weight of its parts.
        beside: endings of tensors that may be there.
        weight: ending of the weight's own name.
    """

    mark: str
    dtypes: frozenset[str]
    codes: str
    needed: tuple[str, ...]
    read: Callable[[Parts], Quantised]
    beside: tuple[str, ...] = ()
    weight: str = ""


_STATE = ".quant_state.bitsandbytes__"
_NESTED = (".nested_absmax", ".nested_quant_map")

RULES = (
    Rule(f"{_STATE}nf4", _ANY, "", (".absmax", ".quant_map"), four_bits, _NESTED),
    Rule(f"{_STATE}fp4", _ANY, "", (".absmax", ".quant_map"), four_bits, _NESTED),
    Rule(".SCB", frozenset({"I8"}), ".weight", (), eight_bits, (".weight_format",), ".weight"),
    Rule("_packed", frozenset({"I32"}), "_packed", ("_scale", "_shape"), packed_integers, ("_zero_point", "_g_idx")),
    Rule("_blocks", frozenset({"U8"}), "_blocks", ("_scales",), microscaled),
    Rule("_scale_inv", _FLOAT8, "", (), scaled, ("_zero_point",)),
    Rule("_scale", _FLOAT8 | {"I8"}, "", (), scaled, ("_zero_point",)),
)
"""Tried in this order; a tensor belongs to the first format that claims it."""

_ACTIVATIONS = tuple(
    f"{what}_{how}"
    for what in ("input", "output", "activation", "q", "k", "v", "prob")
    for how in ("scale", "scale_inv", "zero_point", "global_scale", "scale_ub")
)
_FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "qweight": "GPTQ or AWQ",
        "q_weight": "EXL2",
        "W_q": "HQQ",
        "weight_scale_2": "NVFP4",
        "weight_global_scale": "NVFP4",
        "_data": "quanto",
    }
)
"""Formats that no codec reads, by the last part of a name that only they have."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """What the tensors of a checkpoint stand for.

    Parameters:
        weights: quantised weights by name.
        plain: tensors that are stored as they are, in their order.
        activations: tensors about activations, which an unquantised model has no use for.
    """

    weights: Mapping[str, Quantised]
    plain: Mapping[str, Stored]
    activations: tuple[str, ...]


def group_tensors(tensors: Mapping[str, Stored], settings: Settings) -> Grouped:
    """Tell which tensors of a checkpoint are one weight together.

    Small tensors that say what others are (shapes, tables) are read; weights are not.

    Parameters:
        tensors: all tensors of a checkpoint by name.
        settings: what its config.json says.

    Raises:
        UnsupportedError: the weights are quantised in a way that no codec reads.
        MissingTensorError: a part of a weight is not there.
        CheckpointError: the parts of a weight do not fit together.
    """
    place = _place(tensors)
    settings.check(place)
    _refuse_foreign(tensors, place)
    weights: dict[str, Quantised] = {}
    rest = dict(tensors)
    for rule in RULES:
        for name in [name for name in rest if name.endswith(rule.mark)]:
            if name in rest and (parts := _parts(rule, name.removesuffix(rule.mark), rest, settings)):
                _refuse_strided(parts)
                weights[parts.name] = rule.read(parts)
                for used in parts.names:
                    del rest[used]
    for name in [name for name, stored in rest.items() if stored.spec.dtype.name in _FLOAT8]:
        if settings.method is not None:
            raise _missing(name, rest[name], f"`{name}_scale_inv` or `{name}_scale`")
        parts = Parts(name, {"": rest.pop(name)}, "", settings)
        _refuse_strided(parts)
        weights[name] = unscaled(parts)
    activations = _activations(rest) if settings.method else ()
    plain = {name: stored for name, stored in rest.items() if name not in activations}
    if settings.method:
        _refuse_unread(plain, settings)
    return Grouped(weights, plain, activations)


def _place(tensors: Mapping[str, Stored]) -> str:
    return next((str(stored.extent.file.parent) for stored in tensors.values()), "")


def _parts(rule: Rule, stem: str, rest: Mapping[str, Stored], settings: Settings) -> Parts | None:
    """The tensors of one weight; None if this is another format's."""
    codes = rest.get(stem + rule.codes)
    if codes is None or (rule.dtypes and codes.spec.dtype.name not in rule.dtypes):
        return None
    for ending in rule.needed:
        if stem + ending not in rest:
            raise _missing(stem + rule.codes, codes, f"`{stem}{ending}`")
    endings = dict.fromkeys((rule.codes, rule.mark, *rule.needed, *rule.beside))
    found = {ending: rest[stem + ending] for ending in endings if stem + ending in rest}
    return Parts(stem + rule.weight, found, rule.codes, settings)


def _refuse_strided(parts: Parts) -> None:
    """Codecs find codes and factors by their place in a file, which strides of a pickle would change."""
    for stored in parts.stored.values():
        if stored.strides is not None:
            raise UnsupportedError(
                f"`{stored.spec.name}`, a part of the quantised weight `{parts.name}`, is a view whose entries are not "
                "in row-major order, and this version cannot read such weights",
                place=str(stored.extent.file),
                hint="the same checkpoint saved as safetensors, or with `.contiguous()` tensors",
            )


def _missing(name: str, stored: Stored, expected: str) -> MissingTensorError:
    what = f"`{name}` is quantised, and a part that it needs is not there"
    return MissingTensorError(what, place=str(stored.extent.file.parent), expected=expected)


def _refuse_foreign(tensors: Mapping[str, Stored], place: str) -> None:
    for name in tensors:
        kind = _FOREIGN.get(name.rpartition(".")[2])
        if kind is not None:
            raise UnsupportedError(
                f"`{name}` is quantised ({kind}), and this version cannot read such weights",
                place=place,
                hint="the unquantised checkpoint of the same model",
            )


def _activations(rest: Mapping[str, Stored]) -> tuple[str, ...]:
    return tuple(name for name in rest if name.rpartition(".")[2] in _ACTIVATIONS or name.endswith("_activation_scale"))


def _refuse_unread(plain: Mapping[str, Stored], settings: Settings) -> None:
    """Whole numbers in the shape of a matrix are codes of a format that nobody has recognised."""
    for name, stored in plain.items():
        spec = stored.spec
        if len(spec.shape) > 1 and spec.dtype.name not in _NO_CODES:
            raise UnsupportedError(
                f"`{name}` holds {spec.dtype.title} in a model that is quantised ({settings.method}), "
                "in no format that this version reads",
                place=str(stored.extent.file.parent),
                hint="the unquantised checkpoint of the same model",
            )
