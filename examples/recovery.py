"""Merge the example models by every method, and measure how much of what the experts learned each merge keeps.

    python examples/recovery.py                          all of examples/recipes, as a table
    python examples/recovery.py ties dare_ties           some of them
    python examples/recovery.py --page docs/tutorials/compare-methods.md      put the table into the page

A model's score on a text is the bits that it needs per byte. The *recovery* of a merge is the share of an expert's gain
over the base, on the expert's own text, that the merge keeps: 100 % is as good as the expert, 0 % as the base, averaged
over the experts that the recipe merges. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
DOMAINS = ("de", "es", "fr", "py")
WINDOW, WINDOWS = 192, 48  # bytes of a stretch of text, and stretches of a text
BEGIN, END = "<!-- recovery -->", "<!-- end of recovery -->"


@dataclass(frozen=True, slots=True)
class Row:
    """What a merge keeps.

    Parameters:
        name: of the recipe.
        experts: the domains of the models that it merges.
        kept: share of the gain of each.
        general: bits per byte on English lost against the base; negative if won.
    """

    name: str
    experts: tuple[str, ...]
    kept: tuple[float, ...]
    general: float

    @property
    def recovery(self) -> float:
        """Mean over the experts."""
        return sum(self.kept) / len(self.kept)


def bits_per_byte(model: Any, text: bytes) -> float:
    """Bits that a model needs per byte of a text."""
    import torch

    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    step = (len(ids) - WINDOW) // WINDOWS
    batch = torch.stack([ids[place * step : place * step + WINDOW] for place in range(WINDOWS)])
    with torch.no_grad():
        loss: float = model(input_ids=batch, labels=batch).loss.item()
    return loss / math.log(2)


def scores(folder: Path, domains: Sequence[str]) -> dict[str, float]:
    """Bits per byte of a model on the texts of some domains."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {name: bits_per_byte(model, (EXAMPLES / "text" / f"{name}.txt").read_bytes()) for name in domains}


def rows(recipes: Sequence[Path], work: Path) -> Iterator[Row]:
    """Merge every recipe and score the results."""
    import mergekit

    base = scores(EXAMPLES / "models" / "base", ("en", *DOMAINS))
    experts = {name: scores(EXAMPLES / "models" / name, (name,))[name] for name in DOMAINS}
    for recipe in recipes:
        text = recipe.read_text(encoding="utf-8")
        named = tuple(name for name in DOMAINS if f"examples/models/{name}\n" in text)
        mergekit.merge_models(text.replace("examples/models", str(EXAMPLES / "models")), work / recipe.stem)
        merged = scores(work / recipe.stem, ("en", *named))
        kept = tuple((base[name] - merged[name]) / (base[name] - experts[name]) for name in named)
        yield Row(recipe.stem, named, kept, merged["en"] - base["en"])


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown: merges of more experts first, then by recovery."""
    lines = ["| method | experts | recovery | least kept | English |", "|---|---|---:|---:|---:|"]
    for row in sorted(found, key=lambda row: (-len(row.experts), -row.recovery)):
        worst = min(zip(row.kept, row.experts, strict=True))
        cells = (f"`{row.name}`", ", ".join(row.experts), f"{row.recovery:.1%}", f"{worst[0]:.1%} ({worst[1]})")
        lines.append(f"| {' | '.join(cells)} | {row.general:+.3f} |")
    return "\n".join(lines)


def put_into(page: Path, lines: str) -> None:
    """Replace the table of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    page.write_text(pattern.sub(f"{BEGIN}\n\n{lines}\n\n{END}", text), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", help="names in examples/recipes; all of them without any")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the table into this page")
    options = parser.parse_args()
    known = {file.stem: file for file in sorted((EXAMPLES / "recipes").glob("*.yml"))}
    if unknown := [name for name in options.recipe if name not in known]:
        sys.exit(f"no such recipe: {', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as work:
        found = list(rows([known[name] for name in options.recipe or known], Path(work)))
    print(table(found))
    if options.page:
        put_into(options.page, table(found))


if __name__ == "__main__":
    main()
