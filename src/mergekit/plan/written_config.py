"""The output's config.json: the donor's, with what the output's tensors make untrue of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mergekit.layout import edit_config
from mergekit.plan.models import Model
from mergekit.plan.segments import ModuleSegments
from mergekit.plan.tasks import TensorTask
from mergekit.plan.tensors import MERGEABLE


def written_config(models: Sequence[Model], modules: Sequence[ModuleSegments], tasks: Sequence[TensorTask]) -> str:
    """The text of config.json.

    Parameters:
        models: the models, the donor first.
        modules: of the output.
        tasks: of the output's tensors.
    """
    donor = models[0]
    stacked = {
        module.module.name: [
            (model.checkpoint.config, model.layout, entry.first + step)
            for segment in module.segments
            for step in range(segment.layers)
            for entry in [segment.inputs[0]]
            for model in [models[entry.model]]
        ]
        for module in modules
        if module.sliced
    }
    text = donor.checkpoint.text("config.json") or "{}"
    return edit_config(
        text,
        donor=donor.layout,
        stacked=stacked,
        dtype=None if donor.packed else _written_dtype(tasks),
        tied=_written_tie(models, tasks),
        vocab_size=_written_vocabulary(donor, tasks),
        unquantised=not donor.packed,
    )


def _written_dtype(tasks: Sequence[TensorTask]) -> str | None:
    """The dtype that most bytes of the output have."""
    sizes: Counter[str] = Counter()
    for task in tasks:
        if task.out.dtype.name in MERGEABLE:
            sizes[task.out.dtype.title] += task.out.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def _written_tie(models: Sequence[Model], tasks: Sequence[TensorTask]) -> bool | None:
    """False if a head is written that loaders would ignore under the donor's config; None to leave it alone."""
    heads = [model.layout.head for model in models if model.layout.head]
    if not any(task.out.name in heads for task in tasks):
        return None
    untied = any(model.layout.head and not model.tied for model in models)
    return False if untied and models[0].layout.tied else None


def _written_vocabulary(donor: Model, tasks: Sequence[TensorTask]) -> int | None:
    """Rows of the output's embedding, if they are not the donor's."""
    name = donor.layout.embedding
    rows = next((task.out.shape[0] for task in tasks if task.out.name == name), None)
    own = donor.embedding
    return rows if own is None or rows != own.spec.shape[0] else None
