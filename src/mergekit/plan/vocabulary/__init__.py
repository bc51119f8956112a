"""The vocabulary of the output: which tokens it has, and which rows of the models their embeddings are made of."""

from mergekit.plan.vocabulary.choosing import Vocabulary, choose_vocabulary
from mergekit.plan.vocabulary.numbering import alignments_of, keep_numbers
from mergekit.plan.vocabulary.order import Order, Row, by_number, by_token
from mergekit.plan.vocabulary.settings import with_token_ids

__all__ = [
    "Order",
    "Row",
    "Vocabulary",
    "alignments_of",
    "by_number",
    "by_token",
    "choose_vocabulary",
    "keep_numbers",
    "with_token_ids",
]
