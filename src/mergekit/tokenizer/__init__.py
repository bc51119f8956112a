"""Vocabularies and chat templates, without transformers."""

from mergekit.tokenizer.chat import choose_template, tokenizer_config_with
from mergekit.tokenizer.choice import Choice, unite, with_tokens, within
from mergekit.tokenizer.files import TokenizerFiles, tokenizer_files
from mergekit.tokenizer.proof import prove
from mergekit.tokenizer.tables import TokenTable, parse_table, read_table, read_tables

__all__ = [
    "Choice",
    "TokenTable",
    "TokenizerFiles",
    "choose_template",
    "parse_table",
    "prove",
    "read_table",
    "read_tables",
    "tokenizer_config_with",
    "tokenizer_files",
    "unite",
    "with_tokens",
    "within",
]
