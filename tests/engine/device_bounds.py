"""How far results of torch are from those of the kernels: the table of docs/guides/accelerators.md.

``python tests/engine/device_bounds.py`` measures on torch's CPU device and writes the table; with the name of a device
it measures there, and prints.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "guides" / "accelerators.md"
FORMATS = ("BF16", "F16", "F32")
SEEDS = range(6)
HEAD = "| method | bfloat16 | float16 | float32 |"
EQUAL = "equal"
STEP = 1e-6
"""Float32 arithmetic in another order: a share of the largest entry."""


def difference(name, raw_format, compute, seeds=SEEDS):
    """Largest difference from the kernels before rounding, as a share of the largest entry; 0 only if bits are equal.

    The output is float32, whatever the inputs: there nothing hides behind a rounding.
    """
    from held_tasks import tensor_of

    from mergekit.engine import open_device
    from mergekit.kernels import GRAIN

    greatest = 0.0
    for seed in seeds:
        tensor = tensor_of(name, seed, raw_format, "F32")
        kernels = tensor.merged(open_device(None), 3 * GRAIN)
        found = tensor.merged(compute, 3 * GRAIN)
        if found.tobytes() != kernels.tobytes():
            apart = np.abs(found.astype(np.float64) - kernels).max() / max(np.abs(kernels).max(), 1e-30)
            greatest = max(greatest, float(apart), 1e-30)
    return greatest


def claim(apart):
    """What the table says of a difference."""
    assert apart <= STEP, apart
    return EQUAL if apart == 0 else f"≤ {STEP:.0e}".replace("e-0", "e-")


def rows(compute):
    from mergekit.methods import METHODS

    for name in sorted(METHODS):
        cells = [claim(difference(name, raw_format, compute)) for raw_format in FORMATS]
        yield f"| `{name}` | {' | '.join(cells)} |"


def table(compute):
    return "\n".join([HEAD, "|---|---|---|---|", *rows(compute)])


def stated(page):
    """The table in the guide: method and format -> bound."""
    lines = page[page.index(HEAD) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {
        (name, raw_format): 0.0 if bound == EQUAL else float(bound.removeprefix("≤ "))
        for name, *bounds in cells
        for raw_format, bound in zip(FORMATS, bounds, strict=True)
    }


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / each) for each in ("methods", "kernels", "engine")]
    from mergekit.engine import open_device

    device = sys.argv[1] if sys.argv[1:] else "cpu"
    made = table(open_device(device))
    if sys.argv[1:]:
        print(made)
    else:
        text = PAGE.read_text("utf-8")
        old = text[text.index(HEAD) :].split("\n\n")[0]
        PAGE.write_text(text.replace(old, made), "utf-8")
