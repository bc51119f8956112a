"""From a recipe to a plan: which tensors, from what, in which bytes of which file."""

from mergekit.plan.memory import Memory
from mergekit.plan.models import Model
from mergekit.plan.planner import VOCABULARY, Attempt, PlanOptions, plan_merge, try_to_plan
from mergekit.plan.problems import Problems
from mergekit.plan.tasks import Leftover, Operand, Plan, TensorTask, Treated

__all__ = [
    "VOCABULARY",
    "Attempt",
    "Leftover",
    "Memory",
    "Model",
    "Operand",
    "Plan",
    "PlanOptions",
    "Problems",
    "TensorTask",
    "Treated",
    "plan_merge",
    "try_to_plan",
]
