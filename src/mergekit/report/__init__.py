"""What a merge leaves beside the weights: a model card, a report, and a way to check both."""

from mergekit.report.card import model_card
from mergekit.report.record import merge_report

__all__ = ["merge_report", "model_card"]
