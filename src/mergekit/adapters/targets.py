"""What an adapter changes about each tensor of its base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

from mergekit.adapters.changes import Change, ExpertProducts, NewNorms, NewRows, Offset, Product, Replacement
from mergekit.adapters.folder import Adapter
from mergekit.adapters.names import Base, Names, Parts, find_names, read_parts
from mergekit.adapters.orientation import inputs_first
from mergekit.adapters.parameters import square_experts_inputs_first, target_of
from mergekit.checkpoint import Stored, TensorSpec
from mergekit.errors import CheckpointError, UnsupportedError

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What an adapter does to a base.

    Parameters:
        changes: by the base's name of the tensor; for each at least one.
        head: the output head that the adapter gives to a base which uses its embedding as one: its name, and that of
            the embedding; None otherwise.
        remarks: what was found and not used, one sentence each.
    """

    changes: Mapping[str, Sequence[Change]]
    head: tuple[str, str] | None
    remarks: tuple[str, ...]


def match_adapter(adapter: Adapter, base: Base) -> Adaptation:
    """Find out what an adapter does to its base.

    Names meet behind the prefix that peft puts before them, and as those of different models do
    (:func:`mergekit.layout.align_names`).

    Parameters:
        adapter: the adapter.
        base: the model it is applied to.

    Raises:
        CheckpointError: a tensor of the adapter belongs to no tensor of the base, has an impossible shape or lacks its
            partner.
        UnsupportedError: the base's tensor cannot be computed with.
    """
    parts = read_parts(adapter)
    wanted = {**parts.whole}
    for module, own in parts.modules.items():
        wanted[target_of(module, adapter.config.parameters)] = next(iter(own.values()))
        if "lora_B.bias" in own and adapter.config.biased:
            wanted[f"{module}.bias"] = own["lora_B.bias"]
    names = find_names(adapter, wanted, base)
    changes: dict[str, list[Change]] = {}
    for name, change in _Changes(adapter, base, names).all(parts):
        changes.setdefault(names.own[name], []).append(change)
    ignored = [m for m, own in parts.modules.items() if "lora_B.bias" in own and not adapter.config.biased]
    remarks = [f"{len(ignored)} biases are not added, since the adapter does not say `lora_bias: true`"]
    return Adaptation(changes, names.head, tuple(remarks) if ignored else ())


@final
@dataclass(frozen=True, slots=True)
class _Changes:
    """Checks what the tensors of an adapter are against its config and the base."""

    adapter: Adapter
    base: Base
    names: Names

    def all(self, parts: Parts) -> Iterator[tuple[str, Change]]:
        """Every change with the adapter's name of what it changes; products come after what replaces the base."""
        for name, stored in parts.whole.items():
            yield name, self._replacement(name, stored)
        for module, own in parts.modules.items():
            yield from self._of_module(module, own)

    def _refuse(self, what: str, expected: str | None = None, hint: str | None = None) -> NoReturn:
        raise CheckpointError(what, place=str(self.adapter.file), expected=expected, hint=hint)

    def _spec(self, name: str) -> TensorSpec:
        """What the base has at a name of the adapter."""
        head = self.names.head
        own = head[1] if head and head[0] == name else self.names.own[name]
        spec = self.base.tensors[own]
        if spec.dtype.name not in _FLOATS:
            raise UnsupportedError(
                f"`{own}` is {spec.dtype.title}, to which no adapter can be applied",
                place=str(self.base.root),
                hint="the unquantised checkpoint of the same model",
            )
        return spec

    def _replacement(self, name: str, stored: Stored) -> Replacement:
        spec, shape = self._spec(name), stored.spec.shape
        if shape != spec.shape:
            rows = len(shape) == len(spec.shape) > 1 and shape[1:] == spec.shape[1:]
            self._refuse(
                f"`{stored.spec.name}` of the adapter is {list(shape)}, what it replaces is {list(spec.shape)}",
                hint="a base whose vocabulary was extended as for the training of the adapter" if rows else None,
            )
        return Replacement(stored)

    def _of_module(self, module: str, own: Mapping[str, Stored]) -> Iterator[tuple[str, Change]]:
        weight = target_of(module, self.adapter.config.parameters)
        if "trainable_tokens_delta" in own:
            if len(own) > 1:
                self._refuse(f"`{module}` has both new rows and a product")
            yield weight, self._new_rows(module, own["trainable_tokens_delta"])
            return
        embedded = "lora_embedding_A" in own or "lora_embedding_B" in own
        first, second = ("lora_embedding_A", "lora_embedding_B") if embedded else ("lora_A", "lora_B")
        for part in (first, second):
            if part not in own:
                self._refuse(f"`{module}` has no `{part}`, and has {', '.join(own)}", f"`{first}` and `{second}`")
        if len(self._spec(weight).shape) == 3 and len(own[first].spec.shape) == 2:
            yield weight, self._products(weight, own[first], own[second])
            return
        product = self._product(module, own[first], own[second], embedded)
        yield weight, product
        magnitudes = own.get("lora_magnitude_vector")
        if magnitudes or self.adapter.config.dora:
            yield weight, self._norms(module, product, magnitudes)
        if "lora_B.bias" in own and self.adapter.config.biased:
            yield f"{module}.bias", self._offset(module, own["lora_B.bias"], product.scale)

    def _product(self, module: str, a: Stored, b: Stored, embedded: bool) -> Product:
        config, weight = self.adapter.config, self._spec(f"{module}.weight")
        rank, *ins = a.spec.shape or (0,)
        if rank != config.rank_of(module):
            what = f"`{a.spec.name}` has rank {rank}, the adapter's config says {config.rank_of(module)}"
            self._refuse(what, hint="`r` and `rank_pattern` of adapter_config.json")
        outs, inner, *ones = b.spec.shape if len(b.spec.shape) > 1 else (0, 0)
        height, *others = weight.shape or (0,)
        plain = not embedded and outs == height and ins == others
        transposed = len(weight.shape) == 2 and [*ins, outs] == list(weight.shape)
        if inner != rank or math.prod(ones) != 1 or not (plain or transposed):
            self._refuse(
                f"the product of {list(b.spec.shape)} and {list(a.spec.shape)} does not have the shape of `{module}`",
                expected=f"{list(weight.shape)}",
                hint="the model that the adapter was trained on",
            )
        if plain and transposed:
            told = inputs_first(self.names.own[f"{module}.weight"], self.base.tensors)
            transposed = config.inputs_first if told is None else told
        return Product(a, b, config.scale_of(module), transposed)

    def _products(self, name: str, a: Stored, b: Stored) -> ExpertProducts:
        config, (experts, *lines) = self.adapter.config, self._spec(name).shape
        rank = config.rank_of(name)
        inner = (a.spec.shape[0], *b.spec.shape[1:])
        plain, flipped = ([b.spec.shape[0], *a.spec.shape[1:]] == order for order in (lines, lines[::-1]))
        if inner != (experts * rank, experts * rank) or not (plain or flipped):
            self._refuse(
                f"{list(b.spec.shape)} and {list(a.spec.shape)} make no products of rank {rank} for `{name}`",
                expected=f"products for {experts} experts of {lines}",
                hint="the model that the adapter was trained on; `r` and `rank_pattern` of adapter_config.json",
            )
        if plain and flipped:
            flipped = square_experts_inputs_first(self.base.config)
        return ExpertProducts(a, b, config.scale_of(name), flipped)

    def _norms(self, module: str, product: Product, magnitudes: Stored | None) -> NewNorms:
        said = self.adapter.config.dora
        if magnitudes is None or not said:
            lack = "no" if magnitudes is None else "a"
            self._refuse(f"`{module}` has {lack} `lora_magnitude_vector`, the adapter's config says use_dora: {said}")
        outs = product.b.spec.shape[0]
        if magnitudes.spec.count != outs:
            self._refuse(f"`{magnitudes.spec.name}` is {list(magnitudes.spec.shape)}", f"{outs} numbers")
        return NewNorms(magnitudes, product.transposed)

    def _offset(self, module: str, values: Stored, scale: float) -> Offset:
        spec = self._spec(f"{module}.bias")
        if values.spec.shape != spec.shape:
            self._refuse(f"`{values.spec.name}` is {list(values.spec.shape)}", f"{list(spec.shape)}")
        return Offset(values, scale)

    def _new_rows(self, module: str, values: Stored) -> NewRows:
        spec = self._spec(f"{module}.weight")
        numbers = self.adapter.config.tokens_of(module)
        if numbers is None:
            self._refuse(f"`{values.spec.name}` has rows of tokens that `trainable_token_indices` does not name")
        if len(spec.shape) != 2 or values.spec.shape != (len(numbers), spec.shape[1]):
            what = f"`{values.spec.name}` is {list(values.spec.shape)}, for {len(numbers)} rows of {list(spec.shape)}"
            self._refuse(what)
        if max(numbers, default=0) >= spec.shape[0]:
            self._refuse(f"token {max(numbers)} of `trainable_token_indices` is none of the base's {spec.shape[0]}")
        return NewRows(values, numbers)
