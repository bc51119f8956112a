"""Merge pretrained language models in weight space, out of core, on ordinary machines."""

__version__ = "0.2.0"
