"""Give a model another model's tokenizer, without training.

Every token of the donor gets a row in the model's vocabulary matrices: the model's own where it has the token, else one
that is approximated. Weights, config and files are planned, read and written as in any merge.
"""

from mergekit.surgery.planning import Transplantation, plan_transplant
from mergekit.surgery.quality import Quality
from mergekit.surgery.registry import APPROXIMATIONS
from mergekit.surgery.settings import Settings
from mergekit.surgery.transplanting import compare, transplant

__all__ = [
    "APPROXIMATIONS",
    "Quality",
    "Settings",
    "Transplantation",
    "compare",
    "plan_transplant",
    "transplant",
]
