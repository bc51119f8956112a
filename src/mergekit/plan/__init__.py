"""From a recipe to a plan: which tensors, from what, in which bytes of which file."""

from mergekit.plan.memory import Memory
from mergekit.plan.models import Model
from mergekit.plan.planner import VOCABULARY, PlanOptions, plan_merge
from mergekit.plan.tasks import Leftover, Operand, Plan, TensorTask, Treated

__all__ = [
    "VOCABULARY",
    "Leftover",
    "Memory",
    "Model",
    "Operand",
    "Plan",
    "PlanOptions",
    "TensorTask",
    "Treated",
    "plan_merge",
]
