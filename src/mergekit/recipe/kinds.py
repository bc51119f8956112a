"""Which tool a recipe is for."""

from __future__ import annotations

from mergekit.errors import Findings
from mergekit.recipe.nodes import Leaf, Table, parse

METHOD = "moe"
"""What `merge_method` may be in a mixture recipe."""


def is_moe(text: str) -> bool:
    """Whether a YAML text is a mixture recipe, right or wrong: it has experts, or says that its method is `moe`.

    Example:
        >>> is_moe("merge_method: moe"), is_moe("merge_method: ties")
        (True, False)
    """
    if "experts" not in text and METHOD not in text:
        return False
    root = parse(text, None, Findings()).root
    if not isinstance(root, Table):
        return False
    method = root.entries.get("merge_method")
    return "experts" in root.entries or (isinstance(method, Leaf) and method.text == METHOD)
