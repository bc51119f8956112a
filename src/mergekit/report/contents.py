"""What the output of a plan will be, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from mergekit.checkpoint.companions import TOKENIZER, is_like
from mergekit.errors import CheckpointError
from mergekit.plan import Model, Plan
from mergekit.report.record import in_units
from mergekit.tokenizer.alignment import Alignment
from mergekit.tokenizer.chat import model_template

_TEMPLATE = "chat_template.jinja"


def contents(plan: Plan) -> Iterator[tuple[str, str]]:
    """Pairs of label and text: tensors, dtypes, vocabulary, tokenizer, chat template.

    Parameters:
        plan: the merge.
    """
    yield "method", plan.method.name
    yield "models", ", ".join(str(model.ref) for model in plan.models)
    count = sum(task.out.count for task in plan.tasks)
    yield "tensors", f"{len(plan.tasks):,} with {count:,} parameters, {in_units(plan.write_bytes)}"
    yield "dtypes", _dtypes(plan)
    yield "vocabulary", _vocabulary(plan)
    yield from alignment_rows(plan.models, plan.alignments)
    yield "tokenizer", _tokenizer(plan)
    yield "chat template", _template(plan)


def _dtypes(plan: Plan) -> str:
    counts = Counter(task.out.dtype.title for task in plan.tasks)
    return ", ".join(f"{title} in {count:,}" for title, count in counts.most_common())


def _vocabulary(plan: Plan) -> str:
    donor = plan.models[0]
    names = {task.out.name: task for task in plan.tasks}
    rows = names.get(donor.layout.embedding or "")
    heads = {model.layout.head for model in plan.models} & names.keys()
    told = f"{rows.out.shape[0]:,} rows" if rows else "no tensor is known as the embedding"
    head = "a tensor of its own" if heads else "tied to the embedding" if donor.tied else "not there"
    return f"{told}; the output head is {head}"


def alignment_rows(models: Sequence[Model], alignments: Mapping[int, Alignment]) -> Iterator[tuple[str, str]]:
    """Pairs of label and text: how the vocabulary of each model that has another one lies to the donor's.

    Parameters:
        models: the models, the donor first.
        alignments: by index of the model.
    """
    for index, own in alignments.items():
        if not own.equal:
            counts = {"moved": own.moved, "added": own.added, "absent": own.absent, "without a row": own.beyond}
            told = ", ".join(f"{len(found):,} {what}" for what, found in counts.items() if found)
            yield "", f"{models[index].ref}: {own.shared:,} tokens as in {models[0].ref}, {told}"


def _tokenizer(plan: Plan) -> str:
    donor = plan.models[0].ref
    named = [name for name in (*plan.copies, *plan.texts) if "/" not in name and is_like(name, TOKENIZER)]
    written = [name for name in named if name in plan.texts and name != _TEMPLATE]
    if not named:
        return "none: no model gives one" if plan.recipe.tokenizer else f"none: {donor} has none, or it is not wanted"
    return f"written anew: {', '.join(sorted(written))}" if written else f"that of {donor}"


def _template(plan: Plan) -> str:
    """Where the chat template comes from; and, if nothing is said about it, which models have another one."""
    if plan.recipe.chat_template:
        return "as the recipe says" if _TEMPLATE in plan.texts else "none"
    try:
        own, *others = [model_template(model.checkpoint) for model in plan.models]
    except CheckpointError as error:
        return f"not known: {error.problem.place} is {error.problem.what}"
    unlike = [str(plan.models[index].ref) for index, other in enumerate(others, 1) if other not in (None, own)]
    told = f"that of {plan.models[0].ref}" if own else "none"
    return f"{told}; {', '.join(unlike)} {'has' if len(unlike) == 1 else 'have'} another one" if unlike else told
