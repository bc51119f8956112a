"""Ask transformers whether it would load a model: config and names of weights, without weights and without its code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit.errors import Problem

_SHOWN = 3  # names in a message
_SORTS = {
    "missing_keys": "weights that transformers expects are not there",
    "unexpected_keys": "transformers would not load weights that are there",
    "mismatched_keys": "weights have other shapes than transformers expects",
}


@dataclass(frozen=True, slots=True)
class Loading:
    """What transformers says.

    Parameters:
        problems: why it would not load the model, or not all of it.
        doubt: why it could not be asked; empty if it could.
    """

    problems: tuple[Problem, ...] = ()
    doubt: str = ""


def try_loading(root: Path) -> Loading:
    """Have transformers read the config, build the model without memory for weights, and compare the names.

    No code of the model is run: a model that transformers knows only by such code is not judged.

    Parameters:
        root: the model's folder.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        return Loading(doubt="transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        return _tried(root, transformers)


def _tried(root: Path, transformers: Any) -> Loading:
    kind = transformers.PretrainedConfig.get_config_dict(root, local_files_only=True)[0].get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        return Loading(doubt=f"transformers {transformers.__version__} does not know the model type `{kind}`")
    try:
        config = transformers.AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any kind: configs check themselves
        return Loading((_refusal(root, f"transformers does not accept it: {_first_line(error)}"),))
    name = next(iter(config.architectures or ()), None)
    made = getattr(transformers, str(name), None)
    if made is None or getattr(config, "quantization_config", None):
        what = "models that are quantised" if made else f"`{name}`"
        return Loading(doubt=f"names of weights are not compared for {what}")
    try:
        # Tensors on the device "meta" have no entries; nothing of the weights but their headers is read.
        settings = {"local_files_only": True, "trust_remote_code": False, "dtype": "auto", "device_map": "meta"}
        _, found = made.from_pretrained(root, config=config, output_loading_info=True, **settings)
    except ImportError as error:
        return Loading(doubt=f"names of weights are not compared: {_first_line(error)}")
    except Exception as error:
        return Loading((_refusal(root, f"transformers cannot make a {name} of it: {_first_line(error)}"),))
    return Loading(tuple(_told(root, found)))


def _told(root: Path, found: dict[str, Any]) -> Iterator[Problem]:
    for sort, what in _SORTS.items():
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(sort) or ())
        if names:
            rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            yield Problem(f"{what}: {', '.join(f'`{name}`' for name in names[:_SHOWN])}{rest}", str(root))
    for error in found.get("error_msgs") or ():
        yield Problem(f"transformers says: {_first_line(error)}", str(root))


def _refusal(root: Path, what: str) -> Problem:
    return Problem(what, str(root / "config.json"))


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
