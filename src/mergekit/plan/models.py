"""The models of a recipe, opened: headers and configs, no weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit.checkpoint import Checkpoint, open_checkpoint
from mergekit.errors import CheckpointError, Findings
from mergekit.layout import Layout, Part, align_names, read_layout
from mergekit.plan.views import Pieces, View, fuse_experts
from mergekit.recipe import ModelRef, Recipe

Key = tuple[str, int | None, str]
"""Where a tensor stands in any model of a merge: module, layer, name within."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a merge.

    Parameters:
        ref: as the recipe names it.
        checkpoint: its tensors and config.
        layout: its structure, with tensors named as in the donor.
        views: its tensors by their place in the structure.
        names: the donor's names for them.
    """

    ref: ModelRef
    checkpoint: Checkpoint
    layout: Layout
    views: Mapping[Key, View]
    names: Mapping[Key, str]

    def part(self, key: Key) -> Part | None:
        """What the layout says about the tensor at a place, if the model has one there."""
        return self.layout.parts.get(self.names.get(key, ""))

    def own_name(self, key: Key) -> str:
        """What this model calls the tensor at a place, or would call it."""
        return self.views[key].names[0] if key in self.views else _written(self.layout, key)

    @property
    def head(self) -> Key | None:
        """Where the output head stands; None if loaders use the embedding."""
        name = self.layout.head
        return _key(self.layout, name) if name and not self.layout.tied else None

    @property
    def embedding(self) -> View | None:
        """The input embedding, which serves as output head where there is none."""
        name = self.layout.embedding
        return self.views.get(_key(self.layout, name)) if name else None


def _written(layout: Layout, key: Key) -> str:
    module = layout.module(key[0])
    if key[1] is None or module is None or module.stack is None:
        return key[2]
    return module.stack.name(key[1], key[2])


def _key(layout: Layout, name: str) -> Key:
    part = layout.parts[name]
    return (part.module, part.layer, part.suffix)


def _model(ref: ModelRef, checkpoint: Checkpoint, donor_names: Sequence[str], fused: bool) -> Model:
    renamed = align_names(checkpoint.tensors, donor_names)
    shapes = {renamed[name]: stored.spec.shape for name, stored in checkpoint.tensors.items()}
    layout = read_layout(shapes, checkpoint.config)
    keys = {_key(layout, renamed[name]): name for name in checkpoint.tensors}
    views: dict[Key, View] = {key: Pieces.of(checkpoint.tensors[name]) for key, name in keys.items()}
    names = {key: renamed[name] for key, name in keys.items()}
    if fused:
        views = _with_fused_experts(checkpoint, keys)
        names = {key: names.get(key) or _written(layout, key) for key in views}
    return Model(ref, checkpoint, layout, views, names)


def _with_fused_experts(checkpoint: Checkpoint, keys: Mapping[Key, str]) -> dict[Key, View]:
    layers: dict[tuple[str, int | None], dict[str, str]] = {}
    for (module, layer, suffix), name in keys.items():
        layers.setdefault((module, layer), {})[suffix] = name
    views: dict[Key, View] = {}
    for (module, layer), own in layers.items():
        stored = {suffix: checkpoint.tensors[name] for suffix, name in own.items()}
        merged = fuse_experts(stored) if layer is not None else {s: Pieces.of(t) for s, t in stored.items()}
        views |= {(module, layer, suffix): view for suffix, view in merged.items()}
    return views


def _where(recipe: Recipe, ref: ModelRef) -> str:
    """Path of the first mention of a model in the recipe."""
    if ref == recipe.base_model:
        return "base_model"
    slices = recipe.every_slice()
    sources = [*recipe.every_entry(), *(source for piece in slices for source in piece.sources)]
    found = [f"{source.path}.model" for source in sources if source.model == ref]
    found += [f"{piece.path}.base_model" for piece in slices if piece.base_model == ref]
    return found[0] if found else "base_model"


def _hub_hint(ref: ModelRef) -> str | None:
    """What to do about a name of the hub, which this version does not download from."""
    owner, slash, name = ref.model.path.partition("/")
    if not slash or not name or "/" in name or owner in ("", ".", "..", "~") or Path(owner).exists():
        return None
    return f"`hf download {ref.model.path} --local-dir FOLDER`, and FOLDER as the model: this version does not download"


def _open(recipe: Recipe, ref: ModelRef, findings: Findings) -> Checkpoint | None:
    place = recipe.place(_where(recipe, ref))
    if ref.adapter is not None:
        findings.error("adapters are not merged into models by this version", place, "a model without `+`")
        return None
    try:
        checkpoint = open_checkpoint(Path(ref.model.path).expanduser())
    except CheckpointError as error:
        problem = error.problem
        what = f"{ref}: {problem.what}"
        hint = problem.hint or _hub_hint(ref)
        inside = f" in {problem.place}" if problem.place and str(problem.place) != ref.model.path else ""
        findings.error(what + inside, place, problem.expected, hint)
        return None
    if ref.model.revision:
        what = f"{ref.model.path} is a local folder, which has no revisions: {ref.model.revision} has no effect"
        findings.warn(what, place)
    for remark in checkpoint.remarks:
        findings.warn(f"{ref}: {remark}", place)
    return checkpoint


def open_models(recipe: Recipe, findings: Findings, fused: bool = False) -> tuple[Model, ...]:
    """Open every model that the recipe names, the donor of config and names first.

    Models that cannot be opened are recorded as errors of the recipe, at the place that names them; then the result
    is empty.

    Parameters:
        recipe: the recipe.
        findings: where errors and remarks are recorded.
        fused: whether the matrices of all experts of a layer are seen as one tensor each.
    """
    refs = recipe.references()
    opened = [(ref, _open(recipe, ref, findings)) for ref in refs]
    present = [(ref, checkpoint) for ref, checkpoint in opened if checkpoint is not None]
    if len(present) < len(refs):
        return ()
    donor_names = list(present[0][1].tensors)
    return tuple(_model(ref, checkpoint, donor_names, fused) for ref, checkpoint in present)
