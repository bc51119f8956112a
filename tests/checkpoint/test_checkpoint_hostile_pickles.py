"""Files that pretend to be of `torch.save`: nothing of them may run, and each gives one clear error."""

import io
import os
import pickle
import pickletools
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergekit.checkpoint import open_pickle, read_tensor
from mergekit.checkpoint.unpickling import unpickle
from mergekit.errors import CheckpointError, HeaderError

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ%stQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%sJ%s%s%s\x89ccollections\nOrderedDict\n)RtR"


def number(value):
    return struct.pack("<i", value)


def sizes(*values):
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor_of(shape, strides, offset=0, count=4, storage=STORAGE):
    return TENSOR % (storage % number(count), number(offset), sizes(*shape), sizes(*strides))


def dict_of(value, key=b"X\x01\0\0\0a"):
    return b"\x80\x02}" + key + value + b"s."


def archived(file, text, data=bytes(16), name="data/0", **how):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", text)
        archive.writestr(zipfile.ZipInfo(f"x/{name}"), data, **how)
    return file


def legacy(file, text, keys=(), data=b""):
    torch_part = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in torch_part]
    file.write_bytes(b"".join([*parts, text, pickle.dumps(list(keys), 2), data]))
    return file


def refused(file, what, kind=HeaderError):
    with pytest.raises(kind) as caught:
        open_pickle(file)
    assert what in caught.value.problem.what
    assert caught.value.problem.place == str(file)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pytorch_model.bin"


def test_the_hand_made_file_is_read(file):
    """Otherwise the refusals below would prove nothing."""
    [stored] = open_pickle(archived(file, dict_of(tensor_of((2, 2), (2, 1))))).tensors
    assert (stored.spec.name, stored.spec.shape, stored.strides) == ("a", (2, 2), None)
    storage = number(4)[:4] + bytes(4) + bytes(16)
    assert open_pickle(legacy(file, dict_of(tensor_of((4,), (1,))), ["0"], storage)).tensors[0].spec.shape == (4,)


class Calling:
    """Pickled as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def canaries(folder):
    """Pickles that would leave a file behind if they ran."""
    canary = folder / "canary"
    touch = f"open({str(canary)!r}, 'w').close()"
    yield "os.system", Calling(os.system, f"touch {canary}")
    yield "eval", Calling(eval, touch)
    yield "exec", Calling(exec, touch)
    yield "open", Calling(open, str(canary), "w")
    yield "getattr", Calling(getattr, Calling(__import__, "os"), "system")
    yield "a call in a call", Calling(dict, [(1, Calling(eval, touch))])
    yield "a call as the key", {Calling(eval, touch): 1}
    yield "torch.load", Calling(torch.load, str(canary))
    yield "state", Calling(torch.nn.Linear, 1, 1, state={"__setstate__": eval})


ATTACKS = [name for name, _ in canaries(Path())]
BY_HAND = {
    "INST": b"(X\x04\0\0\0exitios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x04\0\0\0exito.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\x01\0\0\0.",
    "PERSID": b"Pos.system\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "copyreg": b"\x80\x02ccopyreg\nadd_extension\nX\x02\0\0\0osX\x06\0\0\0systemK\x01\x87R.",
    "_reconstructor": b"\x80\x02ccopyreg\n_reconstructor\ncos\nsystem\nN\x86R.",
    "attributes of a class": b"\x80\x02ccollections\nOrderedDict\n}X\x06\0\0\0updatecbuiltins\neval\nsb.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x08\0\0\0__code__Nsb.",
    "dotted": b"\x80\x04X\x05\0\0\0torchX\x10\0\0\0_utils.os.system\x93.",
    "a function's globals": b"\x80\x04\x8c\x05torch\x8c\x20_utils._rebuild_parameter.__globals__\x93.",
    "our own modules": b"\x80\x02cmergekit.checkpoint.pickled\nos\n.",
    "a dtype as a function": b"\x80\x02ctorch\nfloat16\n)R.",
    "a string as a function": b"\x80\x02X\x09\0\0\0os.system)R.",
    "a rebuilt call": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n)NtR.",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", [archived, legacy])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_run(tmp_path, file, attack, kind, protocol):
    payload = dict(canaries(tmp_path))[attack]
    refused(kind(file, pickle.dumps({"a": payload}, protocol)), "nothing was run")
    assert list(tmp_path.iterdir()) == [file]


def test_the_attacks_work_elsewhere(tmp_path):
    for name in ("os.system", "eval", "exec", "a call in a call"):
        pickle.loads(pickle.dumps({"a": dict(canaries(tmp_path))[name]}))
        (tmp_path / "canary").unlink()


@pytest.mark.parametrize("attack", BY_HAND)
def test_other_instructions_are_refused(file, attack):
    for kind in (archived, legacy):
        with pytest.raises(HeaderError, match=r"nothing was run|contradicts itself"):
            open_pickle(kind(file, BY_HAND[attack]))


def test_nothing_is_imported(file):
    names = b"cantigravity\nfly\n."
    before = set(sys.modules)
    refused(archived(file, names), "`antigravity.fly`")
    assert set(sys.modules) == before


def test_a_name_is_shown_on_one_line(file):
    with pytest.raises(HeaderError) as caught:
        open_pickle(archived(file, b"\x80\x04X\x0a\0\0\0a\n\x1b[31mevX\x04\0\0\0\r\x00il\x93."))
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.problem.what.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (tensor_of((2, 3), (3, 1)), "does not lie inside its storage"),
        (tensor_of((4,), (1,), offset=1), "does not lie inside its storage"),
        (tensor_of((2,), (4,)), "does not lie inside its storage"),
        (tensor_of((2**62, 2), (0, 0)), "impossible shape"),
        (tensor_of((2**31, 2**31, 2**31), (0, 0, 0)), "impossible shape"),
        (tensor_of((2,) * 33, (0,) * 33), "impossible shape"),
        (tensor_of((4,), (-1,)), "impossible shape"),
        (tensor_of((-4,), (1,)), "impossible shape"),
        (tensor_of((4,), (1,), offset=-1), "impossible shape"),
        (tensor_of((4,), (1, 1)), "impossible shape"),
        (TENSOR % (STORAGE % number(4), number(0), b"(\x88t", sizes(1)), "impossible shape"),
        (TENSOR % (STORAGE % number(4), number(0), b"](K\x04e", sizes(1)), "impossible shape"),
        (TENSOR % (b"N", number(0), sizes(4), sizes(1)), "contradicts itself"),
        (tensor_of((4,), (1,), count=5), "is not all there"),
        (tensor_of((4,), (1,), count=-1), "impossible storage"),
        (tensor_of((4,), (1,), storage=STORAGE.replace(b"\x000X", b"\x001X")), "has no member 'x/data/1'"),
        (tensor_of((4,), (1,), storage=STORAGE.replace(b"storage", b"modules", 1)), "a module with its code"),
    ],
)
def test_tensors_that_cannot_be(file, text, what):
    refused(archived(file, dict_of(text)), what)


def test_expanded_tensors_take_no_memory(file):
    tensor = tensor_of((2**31, 2**20), (0, 0))
    [stored] = open_pickle(archived(file, dict_of(tensor))).tensors
    assert stored.extent.nbytes == 4


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x02]" + b"(]]]t2" * 5 + b".",
        b"\x80\x04" + b"]\x94" + b"h\x00h\x00\x86\x94" * 60 + b".",
        b"\x80\x02K\x01" + b"2\x86" * 60_000 + b".",
        b"\x80\x02}K\x01" + b"2\x86" * 60_000 + b"K\x01s.",
        b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
        b"\x80\x02(" + b"(" * 60_000 + b"t" * 60_000 + b"t.",
    ],
    ids=["dup", "doubling", "deep tuples", "deep key", "deep lists", "deep marks"],
)
def test_nests_are_neither_hashed_nor_shown(file, text):
    refused(archived(file, text), "the pickle holds")


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x04B\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        b"\x80\x04\x8d\0\0\0\0\0\1\0\0.",
        b"\x80\x04\x95\0\0\0\0\0\1\0\0.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"p999999999999999999999999\nN.",
    ],
    ids=["memo", "bytes", "bytes 8", "negative", "text 8", "frame", "integer", "digits", "text memo"],
)
def test_claims_are_not_believed(file, text):
    archived(file, text)
    tracemalloc.start()
    with pytest.raises(HeaderError):
        open_pickle(file)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_too_many_instructions(monkeypatch):
    monkeypatch.setattr("mergekit.checkpoint.unpickling._MOST", 1000)
    assert unpickle(io.BytesIO(b"]" + b"NNN000" * 166 + b".")) == []
    with pytest.raises(ValueError, match="more than 1000 instructions"):
        unpickle(io.BytesIO(b"]" + b"NNN000" * 167 + b"."))


@pytest.mark.parametrize(
    "name", ["../data/0", "/data/0", "data/../../0", "..\\data", "C:\\x", "data/\n", "data\\..\\..\\x"]
)
def test_names_that_lead_out_of_the_archive(tmp_path, file, name):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", dict_of(tensor_of((4,), (1,))))
        archive.writestr("x/data/0", bytes(16))
        archive.writestr(name, b"out")
    refused(file, "whose name leads out of it")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_compressed_members(file, member):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", dict_of(tensor_of((4,), (1,)))), ("data/0", bytes(16))):
            kind = zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED
            archive.writestr(f"x/{name}", content, kind)
    refused(file, f"'x/{member}' is compressed")


def test_two_members_of_one_name(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x/data.pkl", dict_of(tensor_of((4,), (1,))))
    refused(file, "two members 'x/data.pkl'")


@pytest.mark.parametrize(
    ("names", "count"), [(["data.pkl", "a/b/data.pkl"], "no"), (["x/data.pkl", "y/data.pkl"], "2")]
)
def test_another_number_of_pickles(file, names, count):
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"N.")
    refused(file, f"has {count} members `NAME/data.pkl`")


def test_big_endian_files(file):
    refused(archived(file, dict_of(tensor_of((4,), (1,))), b"big", "byteorder"), "little-endian")
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, []]
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    refused(file, "little-endian")


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"


def changed(file, signature, field, value, member=1):
    """Write a number over a field in one of the two headers of a member."""
    content = bytearray(file.read_bytes())
    place = -1
    for _ in range(member + 1):
        place = content.index(signature, place + 1)
    content[place + field : place + field + len(value)] = value
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("signature", "field", "value", "what"),
    [
        (LOCAL, 0, b"PKxx", "is not where the archive says"),
        (LOCAL, 6, b"\1\0", "is encrypted"),
        (CENTRAL, 8, b"\1\0", "is encrypted"),
        (LOCAL, 8, b"\x08\0", "is compressed"),
        (LOCAL, 26, b"\x07\0", "is not where the archive says"),
        (LOCAL, 28, b"\xff\xff", "does not fit into the file"),
        (LOCAL, 30, b"y", "is not where the archive says"),
        (CENTRAL, 20, struct.pack("<II", 17, 17), "does not fit into the file"),
        (CENTRAL, 20, struct.pack("<II", 4, 16), "does not fit into the file"),
        (CENTRAL, 20, struct.pack("<II", 4, 4), "is not all there"),
        (CENTRAL, 20, struct.pack("<II", 2**31, 2**31), "does not fit into the file"),
        (CENTRAL, 42, struct.pack("<I", 0), "is not where the archive says"),
        (CENTRAL, 42, struct.pack("<I", 2**31), "cut short"),
    ],
)
def test_headers_that_disagree(file, signature, field, value, what):
    archived(file, dict_of(tensor_of((4,), (1,))))
    with pytest.raises(HeaderError, match=what):
        open_pickle(changed(file, signature, field, value))


def test_members_that_overlap(file):
    second = STORAGE.replace(b"\x000X", b"\x001X")
    text = dict_of(tensor_of((4,), (1,)) + b"sX\x01\0\0\0b" + tensor_of((4,), (1,), storage=second))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", text)
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/data/1", bytes(16))
    assert len(open_pickle(file).tensors) == 2
    # The second member is found inside the first, with a header of its own.
    inner = struct.pack("<4s22xHH", LOCAL, 8, 0)[:30] + b"x/data/1"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", text)
        archive.writestr("x/data/0", inner + bytes(16))
        archive.writestr("x/data/1", bytes(16))
    place = file.read_bytes().index(inner)
    refused(changed(file, CENTRAL, 42, struct.pack("<I", place), 2), "'x/data/0' and 'x/data/1' of the archive overlap")


def test_a_directory_that_claims_too_much(file):
    archived(file, dict_of(tensor_of((4,), (1,))))
    content = file.read_bytes()
    end = content.index(b"PK\5\6")
    padding = 65 << 20
    with file.open("wb") as stream:
        stream.write(content[:end])
        stream.seek(end + padding)
        stream.write(content[end : end + 12] + struct.pack("<II", padding, end) + content[end + 20 :])
    refused(file, "claims 68157440 bytes")


def test_a_pickle_that_is_too_long(file):
    with zipfile.ZipFile(file, "w") as archive, archive.open("x/data.pkl", "w") as member:
        for _ in range(65):
            member.write(bytes(1 << 20))
    refused(file, "claims 68157440 bytes")


@pytest.mark.parametrize(
    ("keys", "data", "what"),
    [
        (["0"], b"", "cut short"),
        (["0"], b"\4" + bytes(7) + bytes(15), "cut short"),
        (["0"], b"\5" + bytes(7) + bytes(20), "is not the one that the pickle describes"),
        (["0"], b"\xff" * 24, "is not the one that the pickle describes"),
        (["1"], b"\4" + bytes(23), "is not the one that the pickle describes"),
        ([0], b"\4" + bytes(23), "is not the one that the pickle describes"),
        ([["0"]], b"\4" + bytes(23), "is not the one that the pickle describes"),
        ([], b"", "is not all there"),
    ],
)
def test_storages_of_older_files(file, keys, data, what):
    refused(legacy(file, dict_of(tensor_of((4,), (1,))), keys, data), what)


def written(kind):
    stream = io.BytesIO()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16).expand(2, 3), "n": 3}
    torch.save(tensors, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


WRITTEN = {kind: written(kind) for kind in ("zip", "legacy")}


def outcome(content):
    """What comes of a file: its tensors with their bytes, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.pt")
        file.write_bytes(content)
        try:
            pickled = open_pickle(file)
        except CheckpointError as error:
            return str(error.problem.what)
        for stored in pickled.tensors:
            assert 0 <= stored.extent.start <= stored.extent.stop <= len(content)
        return {one.spec.name: read_tensor(one).tobytes() for one in pickled.tensors if one.spec.nbytes < 1 << 20}


def test_the_files_that_are_damaged_below_are_whole():
    for content in WRITTEN.values():
        assert {name: len(found) for name, found in outcome(content).items()} == {"a": 24, "b": 12}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_that_is_cut_anywhere(kind):
    content = WRITTEN[kind]
    for end in range(0, len(content), 7):
        assert isinstance(outcome(content[:end]), str)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # backslashes in names: the library says so
@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(WRITTEN)))
def test_a_file_with_changed_bytes(data, kind):
    content = bytearray(WRITTEN[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(outcome(bytes(content)), (str, dict))


opcodes = st.sampled_from([code.code.encode("latin-1") for code in pickletools.opcodes])
names = st.sampled_from(
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nfloat16\n",
        b"ccollections\nOrderedDict\n",
        b"cos\nsystem\n",
        STORAGE % number(4),
        tensor_of((4,), (1,)),
        sizes(2, 2),
        b"X\x01\0\0\0a",
        b"K\x01",
        b"N",
        b")",
        b"}",
        b"]",
        b"(",
    ]
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # backslashes in names: the library says so
@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.one_of(names, names, opcodes, st.binary(max_size=9)), max_size=30))
@example([b"}", b"]", b"R"])
def test_any_pickle_gives_a_value_or_one_kind_of_error(parts):
    with suppress(ValueError):
        found = unpickle(io.BytesIO(b"\x80\x04" + b"".join(parts) + b"."))
        assert type(found).__module__ in ("builtins", unpickle.__module__)
