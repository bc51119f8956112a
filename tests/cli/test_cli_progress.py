"""The progress bar."""

import io
import os
import pty
from concurrent.futures import ThreadPoolExecutor

import pytest

from mergekit.cli.output import Output
from mergekit.cli.progress import Narrator
from mergekit.plan import plan_merge


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def drain(descriptor):
    """All that was written to a pseudo terminal whose other end is closed."""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:  # the way Linux says that nobody can write any more
        pass
    return b"".join(parts).decode()


@pytest.mark.parametrize(("flags", "drawn"), [([], True), (["--quiet"], False), (["--json"], False)])
def test_a_bar_is_drawn_on_terminals(start, bench, flags, drawn):
    ours, theirs = pty.openpty()
    process = start("-m", "mergekit", "yaml", bench.recipe, bench.out, *flags, stderr=theirs)
    os.close(theirs)
    text = drain(ours)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert ("merging" in text) == drawn
    assert bool(text) == drawn
    assert (f"output   {bench.out}" in process.stdout.read()) == drawn


def test_bytes_are_counted_from_all_threads(bench, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    plan = plan_merge(bench.recipe.read_text())
    total = plan.read_bytes + plan.write_bytes
    with Narrator(Output()) as narrator, ThreadPoolExecutor(4) as pool:
        narrator.planned(plan)
        list(pool.map(lambda _: narrator.advance(8), range(total // 8)))
    assert total % 8 == 0
    assert f"{total / 1000:.1f}/{total / 1000:.1f} kB" in stream.getvalue()


def test_without_a_terminal_nothing_is_drawn(bench, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Narrator(Output()) as narrator:
        narrator.planned(plan_merge(bench.recipe.read_text()))
        narrator.advance(10)
    assert stream.getvalue() == ""
