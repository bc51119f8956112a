"""How a recipe names a model: a path or hub name, a revision, an adapter on top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mergekit.errors import CheckpointError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Address:
    r"""Where one set of weights lives: a local folder or a hub repository, at a revision.

    The path is normalised, so that two spellings of the same folder are the same model: leading ``./`` and trailing
    slashes are dropped. (A hub name such as ``org/name`` has neither.)

    Parameters:
        path: folder or hub name, not empty; Windows paths such as ``C:\models\a`` are fine.
        revision: branch, tag or commit of a hub repository, or None for its default.

    Raises:
        ValueError: if the path is empty or has a null character, or if the revision is empty.

    Example:
        >>> Address("./models/a/") == Address("models/a")
        True
        >>> str(Address("org/name", "v2"))
        'org/name@v2'
    """

    path: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("the path of a model is empty")
        if "\0" in self.path:
            raise ValueError("the path of a model has a null character")
        if self.revision is not None and not self.revision.strip():
            raise ValueError(f"the revision of `{self.path}` is empty")
        object.__setattr__(self, "path", _normal(self.path.strip()))

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    def written(self) -> dict[str, str]:
        """The address as a mapping of a recipe."""
        return {"path": self.path, **({"revision": self.revision} if self.revision is not None else {})}

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``PATH`` or ``PATH@REVISION``.

        Raises:
            ValueError: if a part is empty or there is more than one ``@``.
        """
        parts = [part.strip() for part in text.split("@")]
        if len(parts) > 2:
            raise ValueError(f"`{text}` has more than one `@`")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a recipe names it.

    Parameters:
        model: where its weights are.
        adapter: a LoRA adapter that is applied to them, or None.
        architecture: class name that replaces the one in the model's config.json, or None.

    Example:
        >>> ModelRef.parse("org/base@v1+org/lora").adapter
        Address(path='org/lora', revision=None)
    """

    model: Address
    adapter: Address | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        return str(self.model) if self.adapter is None else f"{self.model}+{self.adapter}"

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read ``PATH[@REVISION][+ADAPTER[@REVISION]]``.

        A path that contains ``@`` or ``+`` itself cannot be written this way, only as
        ``{model: {path: ...}, lora: {path: ...}}``.

        Raises:
            ValueError: if a part is empty, or if there is more than one ``+``, or one ``@`` too many.

        Example:
            >>> ModelRef.parse("a+b+c")
            Traceback (most recent call last):
            ...
            ValueError: `a+b+c` has more than one `+`
        """
        parts = text.split("+")
        if len(parts) > 2:
            raise ValueError(f"`{text}` has more than one `+`")
        if len(parts) == 2 and not parts[1].strip():
            raise ValueError(f"`{text}` ends in `+` but names no adapter")
        return cls(Address.parse(parts[0]), Address.parse(parts[1]) if len(parts) == 2 else None)

    def written(self) -> str | dict[str, object]:
        """The model as recipes write it: as text, or where that would mean another model, as a mapping.

        Example:
            >>> ModelRef.parse("a@v1+b").written(), ModelRef(Address("a+b")).written()
            ('a@v1+b', {'model': {'path': 'a+b'}})
        """
        text = str(self)
        try:
            if ModelRef.parse(text) == self:
                return text
        except ValueError:
            pass  # more than one `@` or `+`
        parts = {"model": self.model, "lora": self.adapter}
        named: dict[str, object] = {key: address.written() for key, address in parts.items() if address}
        return {**named, **({"override_architecture": self.architecture} if self.architecture else {})}


def reference(name: str) -> ModelRef:
    """A model as users name it on a command line; a folder or file is meant literally, whatever characters it has.

    Parameters:
        name: a path, or what recipes may write.

    Raises:
        CheckpointError: nothing can be called so.
    """
    try:
        return ModelRef(Address(name)) if Path(name).expanduser().exists() else ModelRef.parse(name)
    except ValueError as error:
        raise CheckpointError(f"{name!r} names no model: {error}") from error


def _normal(path: str) -> str:
    path = re.sub(r"^(?:\./+)+(?=.)", "", path)
    separators = "/\\" if _DRIVE.match(path) else "/"
    short = path.rstrip(separators)
    return path if not short or short.endswith(":") else short
