"""What a user should know about models that can be merged all the same."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit.errors import Findings
from mergekit.methods import Method
from mergekit.plan.compatibility import differences
from mergekit.plan.models import Model

_HEIGHTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def remark_on(models: Sequence[Model], method: type[Method], stream: bool, findings: Findings) -> None:
    """Record what is remarkable about the models of a merge.

    Parameters:
        models: the models.
        method: of the merge.
        stream: whether weights stay on the hub, rather than being downloaded first.
        findings: where it is recorded.
    """
    _note_architectures(models, findings)
    _note_heights(models, findings)
    if stream:
        _note_streaming(models, method, findings)
    else:
        _note_downloads(models, findings)


def _note_architectures(models: Sequence[Model], findings: Findings) -> None:
    for reason in differences(models):
        if reason.startswith("model_type "):
            findings.warn(f"the models call themselves different architectures: {reason}")


def _note_streaming(models: Sequence[Model], method: type[Method], findings: Findings) -> None:
    names = [str(model.ref) for model in models if model.checkpoint.remote]
    if names:
        once = method.reductions is Method.reductions
        again = "" if once else f"; `{method.name}` reads large tensors more than once, and each time anew"
        findings.notice(f"read from the hub while merging, not downloaded: {', '.join(names)}{again}")


def _note_downloads(models: Sequence[Model], findings: Findings) -> None:
    for model in models:
        nbytes = sum(remote.nbytes for remote in model.checkpoint.remote.values())
        if nbytes:
            findings.notice(f"the merge will download {model.ref}: {nbytes / 1e6:,.1f} MB")


def _note_heights(models: Sequence[Model], findings: Findings) -> None:
    """Warn of configs whose number of layers is not that of the tensors: loaders would make up what is not there."""
    for model in models:
        stack = model.layout.main.stack
        if stack is not None and stack.count_key is None:
            told = {key: model.checkpoint.config[key] for key in _HEIGHTS if key in model.checkpoint.config}
            for key, value in told.items():
                findings.warn(f"{model.ref} has {stack.count} layers, and its config.json says {key} {value}")
