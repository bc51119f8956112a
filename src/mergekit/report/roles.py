"""What each model was to a merge, read off its tasks."""

from __future__ import annotations

from mergekit.plan import Plan


def bases(plan: Plan) -> frozenset[int]:
    """Indices of the models that others were compared with."""
    return frozenset(task.operands[0].model for task in plan.tasks if task.based)


def merged(plan: Plan) -> frozenset[int]:
    """Indices of the models that gave tensors to the method beside the base; a module taken over whole is no merge."""
    if plan.method.name == "moe":  # one of its tensors may hold the experts of several models
        return frozenset(range(len(plan.models)))
    tasks = [task for task in plan.tasks if type(task.method) is plan.method]
    return frozenset(operand.model for task in tasks for operand in task.operands[task.based :])
