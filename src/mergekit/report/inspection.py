"""What a model is, from headers and configs alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.checkpoint import DTYPES, Checkpoint, Stored
from mergekit.errors import CheckpointError, UnsupportedError
from mergekit.layout import Layout, ModuleLayout, Part, Stack, derived_buffer, read_layout
from mergekit.layout.perlayer import encodings, with_implied
from mergekit.plan.tensors import MERGEABLE
from mergekit.plan.weights import weights_of
from mergekit.report.facts import Experts, Inspection, LayerKind, ModuleFacts, Share, Slicing, TensorFacts, Tokens
from mergekit.report.parts import PARTS, part_of
from mergekit.report.verify import wrong_layers

_TOKENIZER_BYTES = 32 << 20  # a longer tokenizer.json is not read
_LANGUAGE_MODEL = re.compile(r"CausalLM|LMHead|ConditionalGeneration")
_PLAIN = frozenset(DTYPES[name].title for name in MERGEABLE)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"(^|\.)experts?\.(\d+)\.")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class _Model:
    """A checkpoint with its layout."""

    checkpoint: Checkpoint
    layout: Layout
    parts: Mapping[str, str]

    @property
    def config(self) -> Mapping[str, object]:
        return self.checkpoint.config

    def places(self) -> Iterator[tuple[Stored, Part]]:
        for name, stored in self.checkpoint.tensors.items():
            yield stored, self.layout.parts[name]


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Say what a model is; no weight is read.

    Parameters:
        checkpoint: the model, opened.
    """
    layout = read_layout({name: stored.spec.shape for name, stored in checkpoint.tensors.items()}, checkpoint.config)
    model = _Model(checkpoint, layout, {name: part_of(place) for name, place in layout.parts.items()})
    stored = list(checkpoint.tensors.values())
    dtypes = _grouped(stored, [_kind(one) for one in stored])
    names, architectures = set(checkpoint.tensors), checkpoint.config.get("architectures")
    tokens, experts = _tokens(model), tuple(_experts(model))
    model_type = checkpoint.config.get("model_type")
    recomputed = {name: why for name in names if (why := derived_buffer(name, checkpoint.tensors[name].spec.shape))}
    unrecognised = [name for name, part in model.parts.items() if part == "other" and name not in recomputed]
    return Inspection(
        path=str(checkpoint.root),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        model_type=model_type if isinstance(model_type, str) else None,
        total=_share("all", stored),
        dtypes=tuple(sorted(dtypes, key=lambda share: -share.bytes)),
        modules=tuple(_module(model, module) for module in layout.modules),
        parts=tuple(sorted(_grouped(stored, list(model.parts.values())), key=lambda share: PARTS.index(share.name))),
        experts=experts,
        tokens=tokens,
        quantisation=_quantisation(checkpoint.config),
        packed=tuple(sorted({_kind(one) for one in stored if not _is_plain(one)})),
        unpacked=_unpacked(checkpoint),
        slicing=_slicing(layout),
        recomputed=dict(sorted(recomputed.items())),
        unrecognised=_patterns(unrecognised),
        contradictions=(*_contradictions(model, dtypes), *_wrong_vocabulary(model, tokens), *_wrong_experts(experts)),
        remarks=checkpoint.remarks,
        files=tuple(_grouped(stored, [_file(checkpoint, one) for one in stored])),
        tensors=tuple(_tensor(model, one, place) for one, place in model.places()),
    )


def _is_plain(stored: Stored) -> bool:
    return stored.spec.dtype.name in MERGEABLE and stored.blocks is None


def _kind(stored: Stored) -> str:
    """Its dtype, or the kind of blocks that it is packed in."""
    return stored.spec.dtype.title if stored.blocks is None else stored.blocks.kind.name


def _unpacked(checkpoint: Checkpoint) -> int | None:
    """How many entries there are without quantisation; None if it is of a kind that is not read."""
    try:
        return sum(view.spec.count for view in weights_of(checkpoint, packed=False).views.values())
    except (CheckpointError, UnsupportedError):
        return None


def _share(name: str, stored: Sequence[Stored]) -> Share:
    return Share(name, len(stored), sum(one.spec.count for one in stored), sum(one.extent.nbytes for one in stored))


def _grouped(stored: Sequence[Stored], names: Sequence[str]) -> list[Share]:
    groups: dict[str, list[Stored]] = {}
    for one, name in zip(stored, names, strict=True):
        groups.setdefault(name, []).append(one)
    return [_share(name, group) for name, group in groups.items()]


def _patterns(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_NUMBER.sub("*", name) for name in names))


def _file(checkpoint: Checkpoint, stored: Stored) -> str:
    file, root = stored.extent.file, checkpoint.root
    return file.relative_to(root).as_posix() if file != root and file.is_relative_to(root) else file.name


def _tensor(model: _Model, stored: Stored, place: Part) -> TensorFacts:
    spec = stored.spec
    part, file = model.parts[spec.name], _file(model.checkpoint, stored)
    return TensorFacts(spec.name, _kind(stored), spec.shape, place.module, place.layer, part, file)


def _module(model: _Model, module: ModuleLayout) -> ModuleFacts:
    own = [(stored, place) for stored, place in model.places() if place.module == module.name]
    stack = module.stack
    return ModuleFacts(
        name=module.name,
        aliases=tuple(alias for alias in module.aliases if stack is None or alias != stack.prefix),
        prefix=stack.prefix if stack else None,
        layers=stack.count if stack else 0,
        count_key=stack.count_key if stack else None,
        share=_share(module.name, [stored for stored, _ in own]),
        kinds=tuple(_kinds(own)),
        settings=dict(_settings(model, stack)) if stack else {},
    )


def _kinds(own: Iterable[tuple[Stored, Part]]) -> Iterator[LayerKind]:
    """Layers by the names and shapes of what they hold, in the order of their first ones."""
    layers: dict[int, list[tuple[str, Stored]]] = {}
    for stored, place in own:
        if place.layer is not None:
            layers.setdefault(place.layer, []).append((place.suffix, stored))
    groups: dict[frozenset[str], list[int]] = {}
    for layer in sorted(layers):
        groups.setdefault(_held(layers[layer]), []).append(layer)
    for held, numbers in groups.items():
        first = [stored for _, stored in layers[numbers[0]]]
        marks = _marks(held, [other for other in groups if other is not held])
        yield LayerKind(tuple(numbers), len(first), _share("", first).parameters, marks)


def _held(tensors: Iterable[tuple[str, Stored]]) -> frozenset[str]:
    return frozenset(f"{suffix} {'×'.join(map(str, stored.spec.shape))}" for suffix, stored in tensors)


def _marks(held: frozenset[str], others: Sequence[frozenset[str]]) -> tuple[str, ...]:
    """The shortest beginnings of names that no other kind of layer has; names with shapes where the names are equal."""
    foreign = {begin for other in others for entry in other for begin in _beginnings(entry)}
    own = [entry for entry in sorted(held) if any(entry not in other for other in others)]
    marks = (next((begin for begin in _beginnings(entry) if begin not in foreign), None) for entry in own)
    return tuple(dict.fromkeys(_NUMBER.sub("*", mark) if " " not in mark else mark for mark in marks if mark))


def _beginnings(entry: str) -> list[str]:
    name = entry.partition(" ")[0].split(".")
    return [*(".".join(name[:length]) for length in range(1, len(name) + 1)), entry]


def _settings(model: _Model, stack: Stack) -> Iterator[tuple[str, tuple[object, ...]]]:
    """What config.json says about every layer, where it does not say the same about all."""
    config = model.config
    for key in filter(None, stack.config_path.split(".")):
        nested = config.get(key)
        config = nested if isinstance(nested, Mapping) else {}
    settings = with_implied(config, stack.count)
    for encoding in encodings(settings, stack, {stack.count}, model.layout.stacks):
        told = encoding.read(settings, stack.count)
        if told is not None and any(value != told[0] for value in told):
            yield encoding.key, tuple(told)


def _experts(model: _Model) -> Iterator[Experts]:
    for module in model.layout.modules:
        own = [
            (stored, place)
            for stored, place in model.places()
            if place.module == module.name and place.layer is not None and model.parts[stored.spec.name] == "experts"
        ]
        if own:
            numbers = {int(match[2]) for _, place in own if (match := _EXPERT.search(place.suffix))}
            fused = {stored.spec.shape[0] for stored, _ in own if len(stored.spec.shape) == 3}
            yield Experts(
                module=module.name,
                count=len(numbers) or (fused.pop() if len(fused) == 1 else None),
                configured=_configured_experts(model.config),
                layers=len({place.layer for _, place in own}),
                stored="per expert" if numbers else "fused",
                matrices=_patterns(place.suffix for _, place in own),
            )


def _configured_experts(config: Mapping[str, object]) -> int | None:
    nested = [value for value in config.values() if isinstance(value, Mapping)]
    found = (place.get(key) for place in (config, *nested) for key in _EXPERT_COUNTS)
    return next((count for count in found if isinstance(count, int)), None)


def _tokens(model: _Model) -> Tokens:
    layout = model.layout
    shape = model.checkpoint.tensors[layout.embedding].spec.shape if layout.embedding else (None, None)
    configured: object = model.config
    for key in layout.vocab_key.split(".") if layout.vocab_key else ():
        configured = configured[key] if isinstance(configured, Mapping) else None
    nested = [value for value in model.config.values() if isinstance(value, Mapping)]
    ties = (place.get("tie_word_embeddings") for place in (model.config, *nested))
    return Tokens(
        embedding=layout.embedding,
        rows=shape[0],
        width=shape[1],
        key=layout.vocab_key,
        configured=configured if isinstance(configured, int) else None,
        tokenizer=_tokenizer_size(model.checkpoint),
        head=layout.head,
        tied=layout.tied,
        tie_configured=next((tie for tie in ties if isinstance(tie, bool)), None),
    )


def _tokenizer_size(checkpoint: Checkpoint) -> int | None:
    file = checkpoint.root / "tokenizer.json"
    try:
        if file.is_file() and file.stat().st_size > _TOKENIZER_BYTES:
            return None
        text = checkpoint.text("tokenizer.json")
        return _largest_id(json.loads(text)) + 1 if text is not None else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None


def _largest_id(tokenizer: Any) -> int:
    """The largest token id in the contents of a tokenizer.json; -1 without tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token["id"] for token in tokenizer.get("added_tokens") or ()]
    return max(map(int, [*ids, *added]), default=-1)


def _quantisation(config: Mapping[str, object]) -> str | None:
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        return None
    return str(settings.get("quant_method") or settings.get("quant_algo") or "unknown")


def _slicing(layout: Layout) -> Slicing:
    stacked = tuple(module.name for module in layout.modules if module.stack)
    outside = [(name, part) for name, part in layout.parts.items() if part.module == layout.main.name]
    before, after = (tuple(name for name, part in outside if part.side == side) for side in ("pre", "post"))
    whole = tuple(module.name for module in layout.modules if module.stack is None)
    return Slicing(stacked, before, after, whole) if stacked else Slicing((), (), (), whole)


def _contradictions(model: _Model, dtypes: Sequence[Share]) -> Iterator[str]:
    """What config.json says about layers and dtypes that the tensors do not."""
    file = model.checkpoint.root / "config.json"
    yield from (problem.what for problem in wrong_layers(model.layout, model.config, file))
    told = str(model.config.get("dtype") or model.config.get("torch_dtype") or "").removeprefix("torch.")
    main = max(dtypes, key=lambda share: share.bytes).name if dtypes else ""
    if told and main in _PLAIN and told not in {share.name for share in dtypes}:
        yield f"config.json says dtype {told}, the weights are {main}"


def _wrong_vocabulary(model: _Model, tokens: Tokens) -> Iterator[str]:
    if tokens.rows is not None and tokens.configured not in (None, tokens.rows):
        yield f"`{tokens.key}` says {tokens.configured} tokens, `{tokens.embedding}` has {tokens.rows} rows"
    if tokens.rows is not None and tokens.tokenizer is not None and tokens.tokenizer > tokens.rows:
        yield f"tokenizer.json has {tokens.tokenizer} tokens, `{tokens.embedding}` has {tokens.rows} rows"
    if tokens.head and tokens.tied:
        yield f"`{tokens.head}` is stored, and loaders ignore it: config.json ties it to `{tokens.embedding}`"
    architectures = model.config.get("architectures")
    generates = isinstance(architectures, list) and any(_LANGUAGE_MODEL.search(str(name)) for name in architectures)
    if generates and tokens.embedding and not tokens.head and not tokens.tied:
        yield "there is no output head, and config.json does not tie it to the embedding"


def _wrong_experts(experts: Iterable[Experts]) -> Iterator[str]:
    for own in experts:
        if None not in (own.count, own.configured) and own.count != own.configured:
            yield f"config.json says {own.configured} experts, the layers of `{own.module}` have {own.count}"
