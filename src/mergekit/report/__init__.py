"""What a merge leaves beside the weights: a model card, a report, and a way to check both."""

from mergekit.report.card import model_card
from mergekit.report.record import headline, merge_report, report_text
from mergekit.report.verify import Verification, verify_folder

__all__ = ["Verification", "headline", "merge_report", "model_card", "report_text", "verify_folder"]
