"""The tensors of a mixture: which there are, and what each is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from mergekit.layout import derived_buffer
from mergekit.moe.dense import MATRICES, Dense, final_norm
from mergekit.moe.families import Family, Names
from mergekit.moe.gates import Rows
from mergekit.moe.language import Expert
from mergekit.moe.views import Altered, beside, filled, stacked
from mergekit.plan.views import Held, View

_LAYER = "model.layers.{layer}.{suffix}"
_BASE = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "post_norm": "post_attention_layernorm",
}
_LEAST_SHARED = 128  # entries inside a shared expert that is there only because a layer cannot be without


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor of the output.

    Parameters:
        name: its name.
        view: its entries.
        model: index of the model that it is taken from; of the base for what is computed.
        own: whether it belongs to the mixture and not to the base, and has no dtype of its own.
    """

    name: str
    view: View
    model: int
    own: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A model in the role of an expert.

    Parameters:
        expert: as the recipe has it.
        dense: the model.
        model: its index in the plan.
        number: which expert it is.
        shared: whether every token goes through it.
    """

    expert: Expert
    dense: Dense
    model: int
    number: int
    shared: bool = False


@final
@dataclass(frozen=True, slots=True)
class Mixer:
    """Makes the tensors of a mixture.

    Parameters:
        family: what they are called.
        names: one of the family's ways to store experts.
        base: the donor of everything but experts.
        experts: in the order of the router.
        shared: those that every token goes through.
        rows: of the routers, and then of shared experts' gates, by layer.
        seed: of noise.
    """

    family: Family
    names: Names
    base: Dense
    experts: Sequence[Part]
    shared: Sequence[Part]
    rows: Rows
    seed: int

    def tensors(self) -> Iterator[Wanted]:
        """All tensors, from the embedding to the head."""
        outside = [*self._outside()]
        yield from (each for each in outside if each.name == "model.embed_tokens.weight")
        for layer in range(len(self.base.layers)):
            for each in (*self._attention(layer), *self._mlp(layer)):
                yield Wanted(_LAYER.format(layer=layer, suffix=each.name), each.view, each.model, each.own)
        yield from (each for each in outside if each.name != "model.embed_tokens.weight")

    @property
    def shared_inner(self) -> int:
        """Entries inside all shared experts together."""
        if self.shared:
            return sum(part.dense.inner for part in self.shared)
        always = self.family.shared is not None and self.family.shared.always
        return min(_LEAST_SHARED, self.experts[0].dense.inner) if always else 0

    def _outside(self) -> Iterator[Wanted]:
        model = self.base.model
        for key, view in model.views.items():
            part = model.layout.parts.get(model.names.get(key, ""))
            if key[1] is not None or derived_buffer(key[2], view.spec.shape):
                continue
            if part is not None and part.role == "embedding":
                yield Wanted("model.embed_tokens.weight", view, 0)
            elif part is not None and part.role == "head" and not model.tied:
                yield Wanted("lm_head.weight", view, 0)
            elif final_norm(key[2]):
                yield Wanted("model.norm.weight", view, 0)

    def _attention(self, layer: int) -> Iterator[Wanted]:
        own = self.base.layers[layer]
        for part, name in _BASE.items():
            if part in own:
                yield Wanted(f"{name}.weight", own[part], 0)
            elif part in ("q_norm", "k_norm") and self.family.norms:
                rows = own[part[0]].spec.shape[0]
                size = rows if self.family.norms == "wide_norms" else self.base.head_dim
                yield Wanted(f"{name}.weight", filled(f"{name}.weight", (size,), 1.0), 0, True)
            if f"{part}.bias" in own:
                yield Wanted(f"{name}.bias", own[f"{part}.bias"], 0)
            elif part in self._biased(own):
                yield Wanted(f"{name}.bias", filled(f"{name}.bias", own[part].spec.shape[:1]), 0, True)

    def _biased(self, own: Mapping[str, View]) -> str:
        """The parts of attention that have biases, though the base may have none there: these are zeros."""
        always, together = self.family.biased
        return together if any(f"{part}.bias" in own for part in together) else always

    def _mlp(self, layer: int) -> Iterator[Wanted]:
        count = len(self.experts)
        yield Wanted(self.names.router, Held.of(self.names.router, self.rows[layer, :count]), 0, True)
        matrices = [self._matrices(part, layer) for part in self.experts]
        if self.names.matrix is None:
            yield from self._together(matrices)
        else:
            for part, own in zip(self.experts, matrices, strict=True):
                for matrix in MATRICES:
                    name = self.names.matrix.format(expert=part.number, matrix=self.names.matrices[matrix])
                    yield Wanted(name, own[matrix], part.model, True)
        yield from self._shared(layer)

    def _together(self, matrices: Sequence[Mapping[str, View]]) -> Iterator[Wanted]:
        count, (inner, width) = len(matrices), matrices[0]["gate"].spec.shape
        joined = [own[matrix] for own in matrices for matrix in ("gate", "up")]
        yield Wanted(self.names.gate_up, stacked(joined, (count, 2 * inner, width)), self.experts[0].model, True)
        down = stacked([own["down"] for own in matrices], (count, width, inner))
        yield Wanted(self.names.down, down, self.experts[0].model, True)

    def _matrices(self, part: Part, layer: int) -> dict[str, View]:
        """The matrices of an expert, as they are or altered; only the last one carries the factor."""
        own, expert = part.dense.layers[layer], part.expert
        noise, scale = expert.noise_scale or 0.0, 1.0 if expert.residual_scale is None else expert.residual_scale
        found = {}
        for matrix in MATRICES:
            factor = scale if matrix == "down" else 1.0
            stream = f"{'shared' if part.shared else 'expert'} {part.number} layer {layer} {matrix}"
            plain = noise == 0 and factor == 1
            found[matrix] = own[matrix] if plain else Altered(own[matrix], noise, factor, stream, self.seed)
        return found

    def _shared(self, layer: int) -> Iterator[Wanted]:
        shared = self.family.shared
        if shared is None or not self.shared_inner:
            return
        inner, width = self.shared_inner, self.base.width
        model = self.shared[0].model if self.shared else 0
        if not self.shared:
            shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
            own: dict[str, View] = {matrix: filled(matrix, shape) for matrix, shape in shapes.items()}
        else:
            parts = [self._matrices(part, layer) for part in self.shared]
            own = {name: stacked([each[name] for each in parts], (inner, width)) for name in ("gate", "up")}
            own["down"] = beside([each["down"] for each in parts])
        if shared.joined:
            both = stacked([own["gate"], own["up"]], (2 * inner, width))
            own = {"input_linear": both, "output_linear": own["down"]}
        for matrix, view in own.items():
            named = matrix if shared.joined else f"{matrix}_proj"
            yield Wanted(shared.matrix.format(matrix=named), view, model, True)
        if shared.gate is not None:
            count = len(self.experts)
            rows = self.rows[layer, count : count + 1] if self.shared else self.rows[layer, :1] * 0
            yield Wanted(shared.gate, Held.of(shared.gate, rows), 0, True)
