"""Low-rank adapters that are made here: extracted from a fine-tune, or merged out of others without its weights."""

from mergekit.lora.combining import merge_adapters
from mergekit.lora.decomposition import Decomposition, Goal, decompose
from mergekit.lora.extraction import Extraction, Running, Wish, extract_lora, plan_extraction
from mergekit.lora.merging import AdapterMerge, plan_adapter_merge
from mergekit.lora.units import Choice

__all__ = [
    "AdapterMerge",
    "Choice",
    "Decomposition",
    "Extraction",
    "Goal",
    "Running",
    "Wish",
    "decompose",
    "extract_lora",
    "merge_adapters",
    "plan_adapter_merge",
    "plan_extraction",
]
