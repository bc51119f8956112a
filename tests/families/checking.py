"""What the matrix asks of a family, each as a short answer: "yes", or why not."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

import zoo
from tiny_checkpoints import merge, octets, piece, read_model, recipe

from mergekit.errors import MergekitError
from mergekit.layout import read_layout

YES = "yes"


def check_family(name, root):
    """Every answer about one family, by question."""
    a, b = zoo.make_family(name, root)
    model, own_report = zoo.load(name, a)
    answers = {"tensors": len(read_model(a)), "self_merge": self_merge(a, root)}
    answers["average"] = average(a, b, root / "average")
    answers["loads"] = loads(name, root / "average", own_report) if answers["average"] == YES else "no average"
    answers["restack"], answers["remark"] = restack(name, a, root, model, own_report)
    if own_report:
        answers["loads"] = answers["restack"] = (
            f"refused: transformers misses keys of its own file, {_brief(own_report, 80)}"
        )
    return answers


def self_merge(a, root):
    """Whether one model comes out of `passthrough` and `linear` with the bytes that went in."""
    before = {name: octets(tensor) for name, tensor in read_model(a).items()}
    for method in ("passthrough", "linear"):
        try:
            merge(recipe(method, [a]), root / method)
        except MergekitError as error:
            return f"{method} refused: {_brief(error)}"
        after = {name: octets(tensor) for name, tensor in read_model(root / method).items()}
        if after != before:
            return f"{method}: {_differences(before, after)}"
        if (root / method / "config.json").read_bytes() != (a / "config.json").read_bytes():
            return f"{method} changes config.json"
    return YES


def _differences(before, after):
    lost, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    return "; ".join(
        f"{len(names)} {what}, {names[0]} first"
        for what, names in (("lost", lost), ("new", new), ("changed", changed))
        if names
    )


def average(a, b, out, weights=(1.0, 1.0)):
    """Whether `linear` is the average of both, rounded once; with other weights it is not."""
    try:
        models = [(model, {"weight": weight}) for model, weight in zip((a, b), weights, strict=True)]
        watch = merge(recipe("linear", models), out)
    except MergekitError as error:
        return f"refused: {_brief(error)}"
    first, second, merged = read_model(a), read_model(b), read_model(out)
    if merged.keys() != first.keys() or watch.plan.leftovers:
        return _differences(dict.fromkeys(first), dict.fromkeys(merged)) or "tensors left over"
    wrong = [name for name in first if not _is_average(first[name], second[name], merged[name])]
    return f"{len(wrong)} wrong, {wrong[0]} first" if wrong else YES


def _is_average(first, second, merged):
    if merged.dtype != first.dtype or merged.shape != first.shape:
        return False
    if not first.is_floating_point():
        return torch.equal(merged, first)
    exact = (first.double() + second.double()) / 2
    finfo = torch.finfo(first.dtype)
    step = torch.clamp(exact.abs() * finfo.eps / 2, min=finfo.tiny * finfo.eps)
    return bool(((merged.double() - exact).abs() <= 1.001 * step).all())


def loads(name, folder, expected):
    """Whether transformers says of a folder what it says of the input: nothing, as a rule."""
    try:
        _, report = zoo.load(name, folder)
    except Exception as error:
        return f"transformers fails: {_brief(error)}"
    return (
        YES if report == expected else _brief({key: report[key] for key in report if report[key] != expected.get(key)})
    )


def restack(name, a, root, model, expected):
    """Whether layers of the main stack in another order load, each as the kind of layer that it was; and a remark."""
    layout = _layout(a)
    stack, refusals = layout.main.stack, []
    if stack is None or stack.count < 2:
        return "refused: there are no layers in a row", ""
    last = stack.count
    for number, cut in enumerate(([(0, last - 1), (1, last)], [(0, last), (0, last)])):
        out = root / f"stack{number}"
        try:
            merge(_stacking(layout, a, cut), out)
        except MergekitError as error:
            refusals.append(_brief(error))
            continue
        remark = f"in whole copies only: {refusals[0]}" if refusals else ""
        return _stacked(name, out, model, [layer for run in cut for layer in range(*run)], expected), remark
    return f"refused: {refusals[0]}", ""


def _stacking(layout, a, cut):
    """A recipe that stacks slices; with `modules` where there are several stacks."""
    slices = [piece((a, *run)) for run in cut]
    if sum(module.stack is not None for module in layout.modules) == 1:
        return recipe("passthrough", slices=slices)
    return recipe("passthrough", modules={layout.main.name: {"slices": slices}})


def _layout(folder):
    shapes = {name: tuple(tensor.shape) for name, tensor in read_model(folder).items()}
    return read_layout(shapes, json.loads((folder / "config.json").read_text()))


def _stacked(name, out, model, origins, expected):
    try:
        stacked, report = zoo.load(name, out)
    except Exception as error:
        return f"transformers fails: {_brief(error)}"
    if report != expected:
        return _brief({key: report[key] for key in report if report[key] != expected.get(key)} or "other keys")
    return _unlike(model, stacked, origins) or YES


_PLACE = frozenset(
    {"training", "layer_number", "layer_num", "num_hidden_layers", "num_layers", "lambda_init", "residual_scale"}
    | {"seed", "drop_prob"}
)
"""Attributes that follow from a layer's place, or from the number of all, in formulas of the code."""


def _unlike(model, stacked, origins):
    """How a layer of the new stack differs in kind from the layer that it was; empty if none does."""
    lists = {path: module for path, module in stacked.named_modules() if isinstance(module, torch.nn.ModuleList)}
    found = [
        (module, lists[path])
        for path, module in model.named_modules()
        if path in lists and len(lists[path]) == len(origins) != len(module)
    ]
    if not found:
        return f"no list of {len(origins)} layers in the model that transformers makes"
    for before, after in found:
        for layer, origin in enumerate(origins):
            old, new = _character(before[origin]), _character(after[layer])
            if old != new:
                differing = sorted({entry[:2] for entry in old ^ new}, key=str)
                return f"layer {layer} is not as layer {origin} was: {differing[0]}"
    return ""


def _character(layer):
    """What a layer is: classes, and attributes that are no weights; its number apart."""
    traits = set()
    for path, module in layer.named_modules():
        traits.add((path, type(module).__name__))
        for key, value in vars(module).items():
            counts = "idx" in key or "layer_id" in key or "index" in key or key in _PLACE
            if not counts and not key.startswith("_") and isinstance(value, (bool, int, float, str, type(None))):
                traits.add((path, key, value))
    return traits


def _brief(what, most=230):
    text = json.dumps(what) if isinstance(what, dict) else " ".join(str(what).split())
    return text if len(text) <= most else text[: most - 1] + "…"
