"""Merges that are interrupted, and what must be the same whatever happened to them."""

import json
import shutil

from mergekit.errors import OutputError
from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions


def partial_of(out):
    return out.with_name(f"{out.name}.partial")


def journal_of(out):
    return partial_of(out) / "journal.jsonl"


def contents(out):
    """The bytes of all files of an output but for what took how long; `out` may be a single file."""
    if out.is_file():
        return {"": out.read_bytes()}
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    report = json.loads(found["merge_report.json"])
    assert report.pop("seconds").keys() == {"planning", "merging"}
    return {**found, "merge_report.json": report}


def assert_done(out, expected):
    """The output is that of an undisturbed merge, and nothing is left beside it."""
    found = contents(out)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)] == [out.name]


class Stopper:
    """Interrupts a merge as Ctrl-C does after so many bytes; keeps what is told."""

    def __init__(self, nbytes=None, error=KeyboardInterrupt):
        self.left, self.error = nbytes, error
        self.notices, self.bytes, self.total = [], [], None

    def planned(self, plan):
        self.notices, self.total = plan.findings.notices, plan.read_bytes + plan.write_bytes

    def advance(self, nbytes):
        self.bytes.append(nbytes)
        if self.left is not None and sum(self.bytes) > self.left:
            raise self.error


class Occupier(Stopper):
    """Puts something in the place of the output while it is made, so that the last step fails."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def planned(self, plan):
        super().planned(plan)
        self.out.mkdir()
        (self.out / "note").write_text("in the way")


def run(text, out, progress=None, *, restart=False, overwrite=False, device=None, **options):
    """Carry out a recipe; returns what was told."""
    progress = progress or Stopper()
    settings = JobOptions(PlanOptions(**{"workers": 2, **options}), device, overwrite, restart)
    merge_recipe(text, out, file="merge.yml", options=settings, progress=progress)
    return progress


def leave_all_but_the_last_step(text, out, **options):
    """What a merge leaves that was interrupted when all tensors were finished."""
    try:
        run(text, out, Occupier(out), **options)
    except OutputError as error:
        assert "not empty" in str(error)  # noqa: PT017
    shutil.rmtree(out)
    assert journal_of(out).is_file()
