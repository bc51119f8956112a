"""Prefixes that wrappers put before every tensor name of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel and its kin, torch.compile, and training frameworks


def _carried(names: Collection[str]) -> list[str]:
    """The prefixes of wrappers that all names have, from none to as many as there are."""
    found = [""]
    while own := next((each for each in _WRAPPERS if all(name.startswith(found[-1] + each) for name in names)), None):
        found.append(found[-1] + own)
    return found


def changed_prefix(names: Collection[str], first: Collection[str]) -> tuple[str, str]:
    """What has to be removed from the beginning of all names, and what added, so that most meet those of another list.

    Parameters:
        names: tensor names of a checkpoint, not empty.
        first: those of the checkpoint that decides, not empty.

    Example:
        >>> changed_prefix(["module.a", "module.b"], ["a", "b"])
        ('module.', '')
        >>> changed_prefix(["model.a"], ["_orig_mod.model.a", "_orig_mod.head"])
        ('', '_orig_mod.')
        >>> changed_prefix(["encoder.a"], ["a"])
        ('', '')
    """
    known = frozenset(first)
    ways = [(removed, added) for removed in _carried(names) for added in _carried(first)]
    return max(ways, key=lambda way: sum(way[1] + name.removeprefix(way[0]) in known for name in names))
