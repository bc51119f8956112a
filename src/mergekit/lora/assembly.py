"""Findings about modules → tensors by the names of peft, and what adapter_config.json says about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mergekit.adapters import FUSED
from mergekit.checkpoint import DTYPES, Stored
from mergekit.lora.folder import Spool
from mergekit.lora.measuring import Finding, ThinProduct
from mergekit.lora.settings import Contents
from mergekit.lora.units import grouped

PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules."""


def assemble(findings: Sequence[Finding], spool: Spool) -> tuple[list[Stored], Contents]:
    """The tensors of an adapter and what they are.

    Parameters:
        findings: about all modules.
        spool: where their tensors are; it takes in those that have to be put together.
    """
    findings = _joined_experts(findings)
    products = [found for found in findings if found.held == "products"]
    common = max((found.rank for found in products if found.unit.group), default=None)
    ranks = {found.unit.module: common if found.unit.group and common else found.rank for found in products}
    offsets = _with_offsets(products)
    biased = not offsets and any(found.bias is not None for found in products)
    contents = Contents(
        ranks=ranks,
        parameters=frozenset(found.unit.module for found in products if found.unit.form == "experts"),
        whole=[found.unit.module for found in findings if found.held == "whole"],
        rows={found.unit.module: found.rows for found in findings if found.held == "rows"},
        rank=common,
        transposed=any(found.unit.form == "linear" and found.unit.inputs_first for found in products),
        offsets=offsets,
        biases=biased,
    )
    names = [found.unit.module for found in products]
    tensors = [stored for found in findings for stored in _tensors(found, contents, names, spool)]
    return tensors, contents


def _joined_experts(findings: Sequence[Finding]) -> list[Finding]:
    """The same, where all matrices of a layer's numbered experts have products if one of them has."""
    joined = list(findings)
    for indices in grouped([found.unit for found in findings]):
        if any(joined[index].products and joined[index].rank for index in indices):
            for index in indices:
                if joined[index].held == "nothing":
                    joined[index] = replace(joined[index], held="products")
    return joined


def _with_offsets(products: Sequence[Finding]) -> bool:
    """Whether peft can hold what was done to biases as offsets: there is one for every product, and some are not 0."""
    plain = all(found.unit.form == "linear" and found.offset is not None for found in products)
    return plain and any(found.bias is not None for found in products)


def _tensors(found: Finding, contents: Contents, names: Sequence[str], spool: Spool) -> Iterator[Stored]:
    module, weight = PREFIX + found.unit.module, found.weight
    if found.held == "rows" and weight is not None:
        yield _named(weight, f"{module}.token_adapter.trainable_tokens_delta")
    elif found.held == "whole" and weight is not None:
        yield _named(weight, f"{module}.weight")
        if found.bias is not None:
            yield spool.add(f"{module}.bias", found.bias, weight.spec.dtype)
    elif found.held == "products":
        rank = contents.ranks[found.unit.module]
        yield from _fused(found, rank, names, spool) if found.unit.form == "experts" else _pair(found, rank, spool)
        if contents.offsets and found.offset is not None:
            yield spool.add(f"{module}.lora_B.bias", found.offset)
        elif contents.biases and found.bias is not None:
            yield spool.add(f"{module}.base_layer.bias", found.bias, DTYPES["F32"])


def _named(stored: Stored, name: str, shape: tuple[int, ...] | None = None) -> Stored:
    return replace(stored, spec=replace(stored.spec, name=name, shape=shape or stored.spec.shape))


def _pair(found: Finding, rank: int, spool: Spool) -> Iterator[Stored]:
    unit, (product,) = found.unit, found.products
    a, b = (product.a, product.b) if product.rank == rank else _padded(product, rank, spool)
    module = PREFIX + unit.module
    if unit.form == "embedding":
        yield _named(a, f"{module}.lora_embedding_A")
        yield _named(b, f"{module}.lora_embedding_B")
        return
    kernel = unit.weight.shape[1:] if unit.form == "convolution" else a.spec.shape[1:]
    ones = (1,) * (len(kernel) - 1)
    yield _named(a, f"{module}.lora_A.weight", (rank, *kernel))
    yield _named(b, f"{module}.lora_B.weight", (b.spec.shape[0], rank, *ones))


def _padded(product: ThinProduct, rank: int, spool: Spool) -> tuple[Stored, Stored]:
    """The same product with an inner dimension that is larger."""
    more = rank - product.rank
    a = np.pad(spool.read(product.a), ((0, more), (0, 0)))
    b = np.pad(spool.read(product.b), ((0, 0), (0, more)))
    return spool.add("a", a), spool.add("b", b)


def _fused(found: Finding, rank: int, names: Sequence[str], spool: Spool) -> Iterator[Stored]:
    """All products of a fused tensor as peft lays them: A expert by expert, B with the experts side by side."""
    padded = [_padded(product, rank, spool) for product in found.products]
    a = np.concatenate([spool.read(one) for one, _ in padded])
    b = np.stack([spool.read(other) for _, other in padded], axis=2)
    module, _, parameter = found.unit.module.rpartition(".")
    outer = [name for name in FUSED[FUSED.index(parameter) + 1 :] if f"{module}.{name}" in names]
    wrapped = PREFIX + ".".join([module, *("base_layer" for _ in outer)])
    yield spool.add(f"{wrapped}.lora_A.weight", a)
    yield spool.add(f"{wrapped}.lora_B.weight", b.reshape(b.shape[0], -1))
