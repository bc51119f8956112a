"""Vocabularies and chat templates, without transformers."""

from mergekit.tokenizer.chat import choose_template, tokenizer_config_with

__all__ = ["choose_template", "tokenizer_config_with"]
