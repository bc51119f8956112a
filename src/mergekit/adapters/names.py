"""The tensors of an adapter by what they belong to, and what the base calls that."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.adapters.folder import Adapter
from mergekit.checkpoint import Stored, TensorSpec
from mergekit.errors import CheckpointError
from mergekit.layout import align_names, read_layout

_WRAPPED = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?:token_adapter\.)?"
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|trainable_tokens_delta)"
    r"(?:\.weight|(?P<bias>\.bias))?"
)
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|original_module)(?=\.)")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Base:
    """The model to which an adapter is applied.

    Parameters:
        root: its folder, for messages.
        config: its config.json.
        tensors: what its tensors are, by name; of quantised ones the dtype that they stand for.
    """

    root: Path
    config: Mapping[str, object]
    tensors: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Parts:
    """An adapter's tensors.

    Parameters:
        modules: by module and by what they are to it: ``lora_A``, ``lora_B``, ``lora_B.bias`` …
        whole: tensors that take the place of the base's, by their names.
    """

    modules: Mapping[str, Mapping[str, Stored]]
    whole: Mapping[str, Stored]


def read_parts(adapter: Adapter) -> Parts:
    """Sort the tensors of an adapter.

    Raises:
        CheckpointError: a tensor is not one that peft writes for LoRA.
    """
    modules: dict[str, dict[str, Stored]] = {}
    whole: dict[str, Stored] = {}
    for name, stored in adapter.tensors.items():
        if stored.spec.dtype.name not in _FLOATS:
            what = f"`{name}` of the adapter is {stored.spec.dtype.title}"
            raise CheckpointError(what, place=str(adapter.file), expected="float32, float16 or bfloat16")
        plain = name.removeprefix(_WRAPPED)
        if match := _PART.fullmatch(plain):
            modules.setdefault(match["module"], {})[match["part"] + (match["bias"] or "")] = stored
        elif "lora_" in plain:
            what = f"`{name}` is no tensor of a LoRA adapter that this version knows"
            raise CheckpointError(what, place=str(adapter.file), expected="lora_A, lora_B and what comes with them")
        else:
            whole[_WRAPPERS.sub("", plain)] = stored
    return Parts(modules, whole)


@dataclass(frozen=True, slots=True)
class Names:
    """What the base calls the tensors that an adapter changes.

    Parameters:
        own: the base's names.
        head: the output head that the adapter gives to a base which uses its embedding as one: its name, and that of
            the embedding; None otherwise.
    """

    own: Mapping[str, str]
    head: tuple[str, str] | None


def find_names(adapter: Adapter, wanted: Mapping[str, Stored], base: Base) -> Names:
    """Find the tensors of the base that an adapter changes.

    Parameters:
        adapter: the adapter.
        wanted: the names that it has for them, each with one of its tensors.
        base: the model it is applied to.

    Raises:
        CheckpointError: the base has no such tensor.
    """
    own = align_names(wanted, base.tensors)
    missing = [name for name, found in own.items() if found not in base.tensors]
    head = _new_head(missing, base) if missing else None
    for name in missing:
        if head is None or name != head[0]:
            similar = difflib.get_close_matches(name, base.tensors, 2, 0.5)
            raise CheckpointError(
                f"`{wanted[name].spec.name}` of the adapter would change `{name}`, which the base does not have",
                place=str(adapter.file),
                expected=f"names of tensors in {base.root}" + (f", such as {_listed(similar)}" if similar else ""),
                hint="the model that the adapter was trained on",
            )
    return Names(own, head)


def _listed(names: Collection[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _new_head(missing: Collection[str], base: Base) -> tuple[str, str] | None:
    """The head among missing tensors, if the base has none, and the embedding that is used as one."""
    shapes = {name: spec.shape for name, spec in base.tensors.items()}
    layout = read_layout(shapes, base.config)
    if layout.embedding is None or layout.head is not None or not layout.tied:
        return None
    shape = shapes[layout.embedding]
    for name in missing:
        if read_layout({**shapes, name: shape}, base.config).parts[name].role == "head":
            return name, layout.embedding
    return None
