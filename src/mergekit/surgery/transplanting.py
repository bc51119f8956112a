"""The job: a model and a donor in, a model with the donor's tokenizer out; or a comparison of methods.

Public: :func:`transplant`, :func:`compare`, :func:`fill`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mergekit.errors import NonFiniteError, UnsupportedError
from mergekit.merging import JobOptions, Progress, carry_out, inputs_of
from mergekit.plan import Plan, PlanOptions
from mergekit.plan.memory import physical_memory
from mergekit.surgery.approximation import Approximation, Site, Targets
from mergekit.surgery.matrices import Anchors, Matrix, Reader, Rows, Scratch, gather_anchors, spans
from mergekit.surgery.noise import normal_rows
from mergekit.surgery.planning import Graft, Transplantation, plan_transplant
from mergekit.surgery.quality import Quality, hold_out, judge
from mergekit.surgery.registry import APPROXIMATIONS
from mergekit.surgery.settings import Settings
from mergekit.surgery.subword import Splitter

REPORT = "transplant_report.json"
"""The file in the output that says where rows come from and how good new ones are."""


Advance = Callable[[int], None]
Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""What is told that something of so many bytes begins, and then how many of them are done."""


@contextmanager
def _unwatched(_doing: str, _nbytes: int) -> Iterator[Advance]:
    yield lambda _: None


def transplant(
    model: str,
    donor: str,
    out: Path,
    *,
    settings: Settings | None = None,
    options: JobOptions | None = None,
    chat_template: str = "donor",
    progress: Progress | None = None,
    watch: Watch = _unwatched,
) -> Mapping[str, Any]:
    """Give a model another model's tokenizer.

    The folder appears complete, by one rename, or not at all. All weights but vocabulary matrices are copied.

    Parameters:
        model: as users name it: a folder, a name of the hub, a GGUF file; also with an adapter, ``BASE+ADAPTER``.
        donor: the model whose tokenizer is taken; its embeddings say how tokens relate.
        out: the folder to be made.
        settings: how rows are found.
        options: see :class:`~mergekit.merging.JobOptions`; with a device, large products are taken there.
        chat_template: "donor" or "model", or what recipes may name.
        progress: is told what is written.
        watch: is told how far approximated rows are.

    Returns:
        The report of the merge, with what is in ``transplant_report.json`` under ``transplant``.

    Raises:
        MergekitError: see :func:`plan_transplant`; or the output cannot be written, or must not be.
    """
    options = options or JobOptions()
    record: dict[str, Any] = {}

    def planned() -> Plan:
        scratch = Scratch(out.resolve().parent, options.plan.max_memory or physical_memory() // 4)
        found = plan_transplant(model, donor, settings, options.plan, chat_template=chat_template, scratch=scratch)
        record.update(fill(found, product_device(options.device), scratch, watch))
        texts = {**found.plan.texts, REPORT: json.dumps(record, indent=1, ensure_ascii=False) + "\n"}
        return replace(found.plan, texts=texts)

    return {**carry_out(planned, out, options, progress), "transplant": record}


def compare(
    model: str,
    donor: str,
    methods: Sequence[str],
    *,
    settings: Settings | None = None,
    options: PlanOptions | None = None,
    device: str | None = None,
    watch: Watch = _unwatched,
) -> list[Quality]:
    """Try several methods on the same known tokens, and write nothing.

    Parameters:
        model: as users name it.
        donor: the model whose tokenizer would be taken.
        methods: names of :data:`mergekit.surgery.APPROXIMATIONS`.
        settings: how rows are found; the method is not looked at.
        options: of the plan.
        device: where large products are taken, as torch names it; None for NumPy.
        watch: is told how far it is.

    Returns:
        For each matrix and method how near rows come to the right ones.

    Raises:
        MergekitError: see :func:`plan_transplant`; or there are too few shared tokens to hold some out.
    """
    found = plan_transplant(model, donor, settings, options)
    limit = (options or PlanOptions()).max_memory or physical_memory() // 4
    scratch, place = Scratch(limit=limit), product_device(device)
    qualities = []
    size = len(methods) * sum(graft.model.nbytes for graft in found.grafts)
    with inputs_of(found.plan) as files, watch("comparing", size) as advance:
        for graft in found.grafts:
            bench = _Bench(found, graft, files, place, scratch)
            for method in methods:
                quality = bench.tried(method)
                if quality is None:
                    what = f"the models share too few tokens of several characters to hold some out in `{graft.name}`"
                    raise UnsupportedError(what, expected="at least 5 shared tokens, and `--held-out` above 0")
                qualities.append(quality)
                advance(graft.model.nbytes)
    return qualities


def product_device(name: str | None) -> str | None:
    """Where large products are taken, as torch names it; None for NumPy.

    Parameters:
        name: None, a torch device, or "auto".

    Raises:
        DeviceError: torch or the device is not there.
    """
    from mergekit.engine import open_device

    return next(iter(open_device(name).devices), None)


def fill(found: Transplantation, device: str | None, scratch: Scratch, watch: Watch = _unwatched) -> dict[str, Any]:
    """Approximate all new rows of a plan, and say how good they are.

    Parameters:
        found: the plan; the values of its new rows are written.
        device: where large products are taken, as torch names it; None for NumPy.
        scratch: where rows of shared tokens are kept.
        watch: is told how far it is.

    Returns:
        What is written to ``transplant_report.json``.

    Raises:
        NonFiniteError: a model holds NaN or infinity, or a row became one.
    """
    matrices: dict[str, Any] = {}
    findings, size = (
        found.plan.findings,
        sum(4 * graft.targets.size * graft.model.spec.shape[1] for graft in found.grafts),
    )
    with inputs_of(found.plan) as files, watch("approximating", size) as advance:
        for graft in found.grafts:
            bench = _Bench(found, graft, files, device, scratch)
            quality = bench.tried(found.settings.approximation_method) if graft.targets.size else None
            bench.fill(advance)
            counts = graft.matches.counts
            matrices[graft.name] = {"rows": counts, "held_out": quality.as_json() if quality else None}
            findings.notice(f"`{graft.name}`: {told(counts)}")
    return {"method": found.settings.approximation_method, "settings": found.settings.chosen(), "matrices": matrices}


def told(counts: Mapping[str, int]) -> str:
    """How many rows come about in which way, in words."""
    names = {
        "exact": "as in the model",
        "mapped": "by the token map",
        "byte": "by byte",
        "prefix": "by prefix",
        "approximated": "approximated",
        "zero": "zeros",
        "no_token": "zeros without a token",
    }
    return ", ".join(f"{count:,} rows {names[origin]}" for origin, count in counts.items())


@final
@dataclass(slots=True)
class _Bench:
    """Where a matrix is worked on: all that methods learn from.

    Parameters:
        found: the plan.
        graft: the matrix.
        files: what is read from.
        device: where large products are taken.
        scratch: where rows are kept.
        anchors: the rows of shared tokens, once they are read.
    """

    found: Transplantation
    graft: Graft
    files: Reader
    device: str | None
    scratch: Scratch
    anchors: Anchors | None = None

    def fill(self, advance: Advance) -> None:
        """Approximate the new rows."""
        graft, settings = self.graft, self.found.settings
        if not graft.targets.size:
            return
        method = APPROXIMATIONS[settings.approximation_method].fit(self._site(self._anchors()))
        for span, batch in self._batches(method, graft.targets):
            rows = self._altered(batch.tokens, method.approximate(batch)).astype(np.float32)
            graft.new[span] = rows
            if not np.isfinite(rows).all():
                what = f"a row of `{graft.name}` became infinite or not a number by {settings.approximation_method}"
                raise NonFiniteError(what, hint="checking both models with `mergekit verify`, or another method")
            advance(rows.nbytes)

    def tried(self, name: str) -> Quality | None:
        """How a method does on tokens that are held out; None if there are too few."""
        settings, tokens = self.found.settings, self.found.donor.tokens
        anchors = self._anchors()
        held = hold_out(tokens, anchors.tokens, settings.held_out, settings.seed)
        if not held.any():
            return None
        began = time.perf_counter()
        places = np.flatnonzero(held)
        site = self._site(anchors.some(~held, self.scratch), self._texts(places))
        method = APPROXIMATIONS[name].fit(site)
        found = [method.approximate(batch) for _, batch in self._batches(method, anchors.tokens[held])]
        seconds = time.perf_counter() - began
        texts = [tokens.texts[token] for token in anchors.tokens[held].tolist()]
        return judge(name, self.graft.name, texts, np.concatenate(found), anchors.model[places], seconds)

    def _texts(self, places: Rows) -> frozenset[str]:
        """The model's tokens among the shared ones."""
        tokens = self.found.patient.tokens
        texts = {tokens.texts[row] for row in self.graft.shared[1][places].tolist()}
        return frozenset(texts - tokens.table.added.keys())

    def _anchors(self) -> Anchors:
        if self.anchors is None:
            graft = self.graft
            donor, model = (Matrix(view, self.files) for view in (graft.donor, graft.model))
            self.anchors = gather_anchors(donor, model, graft.shared, self.scratch)
        return self.anchors

    def _site(self, anchors: Anchors, hidden: frozenset[str] = frozenset()) -> Site:
        found, graft = self.found, self.graft
        donor, model = (Matrix(view, self.files) for view in (graft.donor, graft.model))
        pieces = Splitter(found.donor.tokens, found.patient.tokens, hidden)
        configs = (found.donor.model.checkpoint.config, found.patient.model.checkpoint.config)
        return Site(graft.name, graft.role, donor, model, anchors, found.settings, pieces, configs, self.device)

    def _batches(self, method: Approximation, tokens: Rows) -> Iterator[tuple[slice, Targets]]:
        """Tokens with the donor's rows, as many at a time as was asked for and memory allows."""
        wanted = self.found.settings.batch_size
        most = max(1, self.scratch.entries // max(1, method.entries()))
        matrix = Matrix(self.graft.donor, self.files)
        for span in spans(tokens.size, min(wanted, most) if wanted > 0 else most):
            own = tokens[span]
            rows = np.empty((0, matrix.width), np.float32) if method.blind else matrix.rows(own)
            yield span, Targets(own, rows)

    def _altered(self, tokens: Rows, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows with noise, then with a factor."""
        settings = self.found.settings
        if settings.new_vocab_noise:
            drawn = normal_rows(settings.seed, f"noise {self.graft.name}", tokens, rows.shape[1])
            rows = rows + settings.new_vocab_noise * drawn
        return rows * settings.new_vocab_scale if settings.new_vocab_scale else rows
