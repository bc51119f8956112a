"""Pickles read as what they say, without doing it: plain values, containers and tensors, and nothing else.

The standard library decodes the instructions and a machine of our own follows them. It imports nothing and calls
nothing but the functions below; a pickle that asks for anything else is refused by that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, final

from mergekit.checkpoint.dtypes import DTYPES, DType

_MOST = 4_000_000  # instructions: a tensor takes about 35
_RANK = 32  # of NumPy 1


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that tensors lie in.

    Parameters:
        key: what the file calls them.
        dtype: what they are entries of.
        count: number of entries.
    """

    key: str
    dtype: DType
    count: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.bits // 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a pickle describes it; whether it lies inside its storage is not known yet.

    Parameters:
        storage: the bytes that it is in.
        dtype: what its entries are.
        offset: its first entry, counted in entries from the beginning of the storage.
        shape: its dimensions in entries.
        strides: entries from one to the next along each dimension, none negative.
    """

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that a pickle would have imported."""

    text: str


def unpickle(stream: IO[bytes], storages: dict[str, Storage] | None = None) -> object:
    """Read one pickle, up to its end.

    Parameters:
        stream: positioned at its beginning. It must not have more bytes than may be held in memory several times.
        storages: is filled with the storages that the pickle refers to, by key.

    Returns:
        What was pickled: strings, numbers, tuples, lists (for sets too), dicts and :class:`Tensor`; None for other
        plain values. Items of a dict that are not filed under a string have a key without meaning.

    Raises:
        ValueError: it is not a pickle, or asks for something that tensors and plain values do not need.

    Example:
        >>> import io, pickle
        >>> unpickle(io.BytesIO(pickle.dumps({"step": 3})))
        {'step': 3}
        >>> unpickle(io.BytesIO(pickle.dumps(eval)))
        Traceback (most recent call last):
        ValueError: the pickle asks for `builtins.eval`, which no tensor needs; nothing was run
    """
    from pickletools import genops

    machine, where = _Machine({} if storages is None else storages), 0
    try:
        for number, (code, argument, position) in enumerate(genops(stream)):
            where = position or 0
            if number == _MOST:
                raise ValueError(f"the pickle has more than {_MOST} instructions")
            machine.follow(code.name, argument)
        return machine.stack.pop()
    # What these say of our own lists and functions means nothing to a reader.
    except (IndexError, KeyError, TypeError) as cause:
        raise ValueError(f"the pickle contradicts itself at byte {where}") from cause
    except OverflowError as cause:
        raise ValueError(f"the pickle is cut short at byte {where}") from cause


@final
class _Machine:
    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self.stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def follow(self, instruction: str, argument: Any) -> None:
        """Follow one instruction."""
        if instruction not in _INSTRUCTIONS:
            raise ValueError(f"the pickle has the instruction {instruction}, which no tensor needs; nothing was run")
        _INSTRUCTIONS[instruction](self, argument)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def drop(self) -> None:
        self.stack.pop()

    def drop_mark(self) -> None:
        self.stack = self._marked.pop()

    def popped(self, count: int) -> list[Any]:
        """Take so many values off the stack."""
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self._marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Take off the stack what was put there after the last mark."""
        items, self.stack = self.stack, self._marked.pop()
        return items

    def remember(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def extend(self, items: list[Any]) -> None:
        """Add to the list on the stack."""
        self._last(list).extend(items)

    def update(self, items: list[Any]) -> None:
        """Add keys and values, in turns, to the dict on the stack."""
        self._last(dict).update(_filled(items))

    def build(self) -> None:
        """Leave out attributes of a dict, as the versions that `state_dict` notes down."""
        self.stack.pop()
        self._last(dict)

    def name(self, text: str) -> None:
        if text in _UNREADABLE:
            raise ValueError(f"the pickle holds {_UNREADABLE[text]} tensors (`{text}`), which are not read")
        if text not in _CALLS and text not in _VALUES:
            raise ValueError(f"the pickle asks for `{shown(text)}`, which no tensor needs; nothing was run")
        self.stack.append(_Name(text))

    def call(self, name: object, arguments: object) -> None:
        self.stack.append(_function(name, _CALLS)(*_checked(arguments, tuple)))

    def refer(
        self,
        kind: object,
        storage: object,
        key: object = None,
        _: object = None,
        count: object = 0,
        view: object = None,
    ) -> None:
        """Put the storage on the stack that a persistent id of `torch.save` refers to."""
        if kind != "storage":
            raise ValueError("the pickle holds a module with its code; nothing was run")
        if type(key) is not str or type(count) is not int or not 0 <= count < 2**63 or view is not None:
            raise ValueError("the pickle holds an impossible storage")
        found = Storage(key, _STORAGES[_checked(storage, _Name).text], count)
        self._storages.setdefault(key, found)
        self.stack.append(found)

    def _last(self, kind: type) -> Any:
        return _checked(self.stack[-1], kind)


def shown(text: str, most: int = 120) -> str:
    """A string of somebody else's, printable and not too long."""
    escaped = repr(text[: most + 1])[1:-1]
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _filled(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values that come in turns."""
    if len(items) % 2:
        raise TypeError
    # Nothing but strings is hashed: hashing nested tuples can take forever, or all of the stack.
    keys = (key if type(key) is str else object() for key in items[::2])
    return dict(zip(keys, items[1::2], strict=True))


def _function(name: Any, among: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if _checked(name, _Name).text not in among:
        raise ValueError(f"the pickle calls `{name.text}`, which no tensor needs; nothing was run")
    return among[name.text]


def _tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: object = None,
    _hooks: object = None,
    metadata: object = None,
    dtype: _Name | None = None,
) -> Tensor:
    if not _are_sizes((offset,)) or not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
        raise ValueError("the pickle holds a tensor of impossible shape")
    if metadata:
        raise ValueError("the pickle holds a tensor whose entries are conjugated or negated when read")
    own = _checked(storage, Storage).dtype
    return Tensor(storage, _DTYPES[_checked(dtype, _Name).text] if dtype else own, offset, shape, strides)


def _are_sizes(value: Any) -> bool:
    # `type` and not `isinstance`: true and false are no sizes.
    return type(value) is tuple and len(value) <= _RANK and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _typed_tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: object,
    hooks: object,
    dtype: _Name,
    metadata: object = None,
) -> Tensor:
    return _tensor(storage, offset, shape, strides, requires_grad, hooks, metadata, dtype)


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor


def _subclass(function: object, _kind: object, arguments: object, _state: object) -> Tensor:
    rebuilt: Tensor = _function(function, _TENSORS)(*_checked(arguments, tuple))
    return rebuilt


def _mapping(pairs: object = None) -> dict[Any, Any]:
    """An ordered dict; Python 2 passed its items."""
    if pairs is None:
        return {}
    return _filled([part for pair in _checked(pairs, list) for part in _pair(*pair)])


def _pair(key: object, value: object) -> tuple[object, object]:
    return key, value


def _ignored(*_: object) -> None:
    return None


_TENSORS: Mapping[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CALLS: Mapping[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "collections.OrderedDict": _mapping,
    "torch.Size": _ignored,
    "torch.device": _ignored,
    "torch.serialization._get_layout": _ignored,
    "_codecs.encode": _ignored,
    "__builtin__.set": _ignored,
    "builtins.set": _ignored,
}
_DTYPES: Mapping[str, DType] = {f"torch.{dtype.title}": dtype for dtype in DTYPES.values() if dtype.bits >= 8}
_STORAGES: Mapping[str, DType] = {
    "torch.storage.UntypedStorage": DTYPES["U8"],
    **{
        f"torch.{module}{name}Storage": DTYPES[dtype]
        for module in ("", "cuda.")
        for name, dtype in {
            "Double": "F64",
            "Float": "F32",
            "Half": "F16",
            "BFloat16": "BF16",
            "Long": "I64",
            "Int": "I32",
            "Short": "I16",
            "Char": "I8",
            "Byte": "U8",
            "Bool": "BOOL",
            "ComplexFloat": "C64",
        }.items()
    },
}
_VALUES = {*_STORAGES, *_DTYPES, "torch.Tensor", "torch.nn.parameter.Parameter"}
_UNREADABLE = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "empty (meta)",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.complex128": "complex128",
}

_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda *_: None),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2"), _Machine.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.drop(),
    "POP_MARK": lambda machine, _: machine.drop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.popped(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.popped(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.popped(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.since_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.popped(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.since_mark())),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_filled(machine.since_mark())),
    "SETITEM": lambda machine, _: machine.update(machine.popped(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": lambda machine, text: machine.name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(".".join(machine.popped(2))),
    "REDUCE": lambda machine, _: machine.call(*machine.popped(2)),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.refer(*_checked(machine.stack.pop(), tuple)),
}
