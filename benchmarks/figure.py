"""Draw the time of every method over the floor, ours beside a peer's, from the figures that `run.py --json` saved.

    python benchmarks/figure.py figures.json docs/explain/speed.svg

A second file, after `--peer`, has the runs of the peer, if they were measured apart, with the floors beside them. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

OURS, PEER = "#1b6ca8", "#c8c8c8"


def over_floor(result: dict[str, Any], who: str, startup: float) -> float | None:
    """Median seconds of a contender without start-up, over the median of the floor; None if it did not run."""
    runs = {name: [run["seconds"] for run in found] for name, found in result["runs"].items()}
    if not runs.get(who) or not runs.get("floor"):
        return None
    return max(0.05, (median(runs[who]) - startup) / median(runs["floor"]))


def draw(report: dict[str, Any], peers: dict[str, Any], out: Path) -> None:
    """One pair of bars for each method, the fastest first."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    startup = report["circumstances"]["startup_seconds"]
    theirs = {each["method"]: over_floor(each, "peer", startup) for each in peers["results"]}
    found = [(each["method"], over_floor(each, "ours", startup)) for each in report["results"]]
    rows = [(method, own, theirs.get(method)) for method, own in found]
    rows.sort(key=lambda row: row[1] or 0, reverse=True)
    names, ours, peer = zip(*rows, strict=True)
    figure, axes = pyplot.subplots(figsize=(8, 0.36 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    for bars, shift, color, label in ((ours, 0.2, OURS, "this project"), (peer, -0.2, PEER, "mergekit 0.1.5")):
        axes.barh([place + shift for place in places], [bar or 0 for bar in bars], 0.38, color=color, label=label)
        for place, bar in zip(places, bars, strict=True):
            if bar is not None:
                axes.text(bar * 1.06, place + shift, f"{bar:.3g}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 400)
    axes.set_yticks(list(places), names)
    axes.set_xlabel("time over the floor: reading all inputs and writing the output, nothing else (logarithmic)")
    axes.legend(loc="upper right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, metavar="FIGURES.json")
    parser.add_argument("--peer", type=Path, metavar="FIGURES.json", help="where the runs of the peer are")
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    options = parser.parse_args()
    report = json.loads(options.figures.read_text())
    draw(report, json.loads(options.peer.read_text()) if options.peer else report, options.out)


if __name__ == "__main__":
    main()
