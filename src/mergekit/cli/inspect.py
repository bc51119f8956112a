"""``mergekit inspect``: what a model is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mergekit.cli.options import GENERAL, Command, option
from mergekit.cli.output import Output, print_json
from mergekit.cli.tables import paragraph, table

if TYPE_CHECKING:
    from mergekit.report.facts import Inspection, ModuleFacts, Share

_MOST = 6  # names in a list


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("model")
@option(GENERAL, "--tensors", is_flag=True, help="List every tensor: dtype, shape, layer, part, file.")
@option(GENERAL, "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
@click.help_option("-h", "--help")
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    """Say what MODEL is, from its headers and config.json alone: no weight is read.

    MODEL is a folder, a GGUF file, or a name of the hub, of which only headers are downloaded. Shown are layers,
    modules, parts, dtypes, the vocabulary, ties, quantisation, what a recipe's `layer_range` would cut, and where
    config.json contradicts the tensors.
    """
    output = Output(as_json)
    with output.failures():
        _inspect(model, tensors, output)


def _inspect(model: str, tensors: bool, output: Output) -> None:
    from mergekit.checkpoint.hub import Hub, open_model
    from mergekit.recipe import reference
    from mergekit.report.inspection import inspect_checkpoint

    found = inspect_checkpoint(open_model(reference(model).model, Hub(stream=True)))
    if output.as_json:
        print_json({"ok": True, "inspection": record(found, tensors)})
    else:
        lines = [*described(found), *(["", *_tensor_table(found)] if tensors else ())]
        click.echo("\n".join(lines))


def record(found: Inspection, tensors: bool) -> dict[str, Any]:
    """An inspection for programs.

    Parameters:
        found: the inspection.
        tensors: whether every tensor is listed.
    """
    facts = asdict(found)
    if not tensors:
        del facts["tensors"]
    return facts


def size_text(nbytes: int) -> str:
    """A size as people read it.

    Example:
        >>> size_text(256), size_text(1_448_136), size_text(16_060_522_496)
        ('0.3 kB', '1.4 MB', '16.06 GB')
    """
    unit, size = next((unit, size) for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 0)) if nbytes >= size)
    return f"{nbytes / (size or 1000):,.{2 if unit == 'GB' else 1}f} {unit}"


def described(found: Inspection) -> Iterator[str]:
    """An inspection in lines of 80 columns."""
    yield from _rows(_summary(found))
    yield ""
    yield from _module_table(found)
    for module in found.modules:
        yield from _layers(module)
    yield ""
    yield from table(("part", "tensors", "parameters", "bytes"), [_share_row(share) for share in found.parts])
    yield ""
    yield from _rows(_structure(found))
    findings = [
        *(("contradiction", text) for text in found.contradictions),
        *(("remark", text) for text in found.remarks),
    ]
    if findings:
        yield ""
        yield from _rows(findings)


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for label, text in rows:
        yield from paragraph(label, text, indent=15)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + rest


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _summary(found: Inspection) -> Iterator[tuple[str, str]]:
    total = found.total
    yield "model", click.format_filename(found.path)
    yield (
        "architecture",
        f"{', '.join(found.architectures) or 'not named'} (model_type {found.model_type or 'not named'})",
    )
    yield "parameters", f"{total.parameters:,} in {_tensors(total.tensors)}, {size_text(total.bytes)}"
    yield (
        "dtypes",
        "; ".join(f"{share.name} {share.parameters:,} in {_tensors(share.tensors)}" for share in found.dtypes),
    )
    if found.quantisation or found.packed:
        yield "quantisation", _quantisation(found)
    files = [f"{share.name} ({_tensors(share.tensors)}, {size_text(share.bytes)})" for share in found.files]
    yield "files", _listed(files)


def _quantisation(found: Inspection) -> str:
    named = found.quantisation or "none named in config.json"
    packed = f"; no plain numbers: {', '.join(found.packed)}" if found.packed else ""
    read = f"{found.unpacked:,} parameters when unpacked" if found.unpacked is not None else "cannot be unpacked"
    return f"{named}{packed}; {read}"


def _module_table(found: Inspection) -> Iterator[str]:
    rows = [
        (
            module.name,
            module.prefix or "-",
            str(module.layers) if module.prefix else "-",
            f"{module.share.tensors:,}",
            f"{module.share.parameters:,}",
        )
        for module in found.modules
    ]
    yield from table(("module", "prefix", "layers", "tensors", "parameters"), rows, left=2)


def _layers(module: ModuleFacts) -> Iterator[str]:
    """Kinds of layers, and what config.json says about them one by one."""
    if not module.prefix:
        return
    yield ""
    yield f"layers of {module.prefix}"
    rows = []
    for kind in module.kinds:
        marks = f", with {_listed(kind.marks)}" if kind.marks else ""
        rows.append(
            (f"  {spans(kind.layers)}", f"{_tensors(kind.tensors)}, {kind.parameters:,} parameters each{marks}")
        )
    rows += [("  counted by", module.count_key)] if module.count_key else []
    rows += [(f"  {key}", _setting(values)) for key, values in module.settings.items()]
    indent = min(30, max(len(label) for label, _ in rows) + 2)
    for label, text in rows:
        yield from paragraph(label, text, indent)


def _setting(values: Sequence[object]) -> str:
    """What an entry of config.json says about the layers."""
    if all(isinstance(value, bool) for value in values):
        return f"of layers {spans([layer for layer, value in enumerate(values) if value])}"
    return _listed([f"{value} {count}" for value, count in Counter(map(str, values)).items()])


def spans(numbers: Sequence[int]) -> str:
    """Numbers in ascending order, runs of them as ``first-last``.

    Example:
        >>> spans((0, 1, 2, 5, 7, 8))
        '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _share_row(share: Share) -> tuple[str, ...]:
    return share.name, f"{share.tensors:,}", f"{share.parameters:,}", size_text(share.bytes)


def _structure(found: Inspection) -> Iterator[tuple[str, str]]:
    tokens = found.tokens
    if tokens.embedding:
        sizes = [f"{tokens.rows:,} rows of {tokens.width:,}"]
        sizes += [f"`{tokens.key}` {tokens.configured:,}"] if tokens.configured is not None else []
        sizes += [f"tokenizer {tokens.tokenizer:,}"] if tokens.tokenizer is not None else []
        yield "vocabulary", f"`{tokens.embedding}`: {', '.join(sizes)}"
    told = {True: "tied", False: "not tied", None: "not said"}[tokens.tie_configured]
    yield "output head", f"{f'`{tokens.head}`' if tokens.head else 'none stored'}; by config.json {told}"
    for experts in found.experts:
        count = f"{experts.count} experts" if experts.count is not None else "experts"
        where = f"in {experts.layers} layers of {experts.module}"
        yield "experts", f"{count} {where}, stored {experts.stored}: {_listed(experts.matrices)}"
    yield "layer_range", _cut(found)
    if found.recomputed:
        reasons = Counter(found.recomputed.values())
        yield "no weights", "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
    if found.unrecognised:
        yield "other", f"names that say nothing about their part: {_listed(found.unrecognised)}"


def _cut(found: Inspection) -> str:
    """What slices of layers do to this model."""
    heights = {module.name: (module.prefix, module.layers) for module in found.modules}
    cut = found.slicing
    if not cut.modules:
        return "nothing: there are no numbered layers"
    ranges = [f"`{heights[name][0]}`, [0, {heights[name][1]}]" for name in cut.modules]
    if len(cut.modules) > 1:
        named = "; ".join(f"{name} is {text}" for name, text in zip(cut.modules, ranges, strict=True))
        return f"one of several stacks, named under `modules:`: {named}"
    before, after = len(cut.before), len(cut.after)
    sides = f"tensors before the layers ({before}) come from the first slice, those after ({after}) from the last"
    whole = f"; {', '.join(cut.whole)} stays whole" if cut.whole else ""
    return f"cuts {ranges[0]}; {sides}{whole}"


def _tensor_table(found: Inspection) -> Iterator[str]:
    """A line for every tensor; names are not cut, so lines may be longer than 80 columns."""
    several = len(found.files) > 1
    for one in found.tensors:
        shape = "×".join(map(str, one.shape)) or "scalar"
        layer = "-" if one.layer is None else str(one.layer)
        file = f"  {one.file}" if several else ""
        yield f"{one.dtype:<9} {shape:<13} {layer:>3}  {one.part:<9}  {one.name}{file}"
