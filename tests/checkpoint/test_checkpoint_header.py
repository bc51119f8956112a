import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from mergekit.checkpoint import DTYPES, TensorSpec, header_bytes, read_header, read_tensor
from mergekit.errors import CheckpointError, HeaderError

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes):
    return {**GOOD, **changes}


def framed(header, tail=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tail


def accepted_by_safetensors(content):
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


EIGHT = bytes(8)
ENDLESS = b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,8]}}' % (b"9" * 5000)
TWICE = b'{"a":%(good)b,"a":%(good)b}' % {b"good": json.dumps(GOOD).encode()}
HOSTILE = {
    "empty file": (b"", "too few for a header"),
    "seven bytes": (bytes(7), "the file has 7 bytes"),
    "no header": (bytes(8), "does not begin with"),
    "header longer than the file": ((100).to_bytes(8, "little") + b"{}", "cut short: it has 10 bytes.*claims 100"),
    "absurd length": ((2**63).to_bytes(8, "little") + b"{}", "more than the 100000000"),
    "not utf-8": (framed(b'{"\xff":1}'), "not JSON: 'utf-8'"),
    "not json": (framed(b"{nothing}"), "not JSON: .*line 1 column 2"),
    "not an object": (framed([]), "does not begin with"),
    "leading space": (framed(b" {}"), "does not begin with"),
    "two documents": (framed(b"{} {}"), "not JSON: Extra data"),
    "nested brackets": (framed(b'{"a":' + b"[" * 200_000), "nests too deeply"),
    "same name twice": (framed(TWICE, EIGHT), "names 'a' twice"),
    "half a surrogate pair": (framed({"\ud800": GOOD}, EIGHT), "surrogates not allowed"),
    "half a surrogate pair in metadata": (framed({"__metadata__": {"a": "\ud800"}}), "surrogates not allowed"),
    "entry is a list": (framed({"a": ["F32", [2], [0, 8]]}, EIGHT), "exactly the keys"),
    "entry is null": (framed({"a": None}), "exactly the keys"),
    "key missing": (framed({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "exactly the keys"),
    "key too many": (framed({"a": entry(strides=[1])}, EIGHT), "exactly the keys"),
    "unknown dtype": (framed({"a": entry(dtype="F31")}, EIGHT), "unknown dtype 'F31'"),
    "dtype is a list": (framed({"a": entry(dtype=["F32"])}, EIGHT), "unknown dtype"),
    "negative length": (framed({"a": entry(shape=[-2])}, EIGHT), r"impossible shape \[-2\]"),
    "negative zero": (framed({"a": entry(shape=[-0.0], data_offsets=[0, 0])}), "impossible shape"),
    "integer negative zero": (framed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "impossible shape"),
    "fraction": (framed({"a": entry(shape=[2.0])}, EIGHT), "impossible shape"),
    "true": (framed({"a": entry(shape=[True], data_offsets=[0, 4])}, bytes(4)), "impossible shape"),
    "text": (framed({"a": entry(shape="2")}, EIGHT), "impossible shape"),
    "overflow": (framed({"a": entry(shape=[2**40, 2**40])}, EIGHT), "impossible shape"),
    "overflow beside zero": (framed({"a": entry(shape=[2**40, 2**40, 0], data_offsets=[0, 0])}), "impossible shape"),
    "endless number": (framed(ENDLESS, EIGHT), "impossible shape"),
    "too many dimensions": (framed({"a": entry(shape=[1] * 33, data_offsets=[0, 4])}, bytes(4)), "impossible shape"),
    "one offset": (framed({"a": entry(data_offsets=[8])}, EIGHT), "impossible data_offsets"),
    "three offsets": (framed({"a": entry(data_offsets=[0, 8, 8])}, EIGHT), "impossible data_offsets"),
    "offsets of text": (framed({"a": entry(data_offsets=["0", "8"])}, EIGHT), "impossible data_offsets"),
    "offsets backwards": (framed({"a": entry(data_offsets=[8, 0])}, EIGHT), "impossible data_offsets"),
    "negative offset": (framed({"a": entry(data_offsets=[-8, 0])}, EIGHT), "impossible data_offsets"),
    "wrong size": (framed({"a": entry(dtype="F16")}, EIGHT), r"has 8 bytes, F16 of shape \[2\] needs 4"),
    "packed type with a rest": (framed({"a": entry(dtype="F4", shape=[3])}, EIGHT), "do not fill whole bytes"),
    "overlap": (framed({"a": GOOD, "b": entry(data_offsets=[4, 12])}, bytes(12)), "'b' overlaps .* by 4 bytes"),
    "same bytes twice": (framed({"a": GOOD, "b": GOOD}, EIGHT), "'b' overlaps .* by 8 bytes"),
    "hole": (framed({"a": GOOD, "b": entry(data_offsets=[16, 24])}, bytes(24)), "hole of 8 bytes before tensor 'b'"),
    "hole at the beginning": (framed({"a": entry(data_offsets=[8, 16])}, bytes(16)), "hole of 8 bytes"),
    "empty tensor inside another": (framed({"a": GOOD, "b": entry(shape=[0], data_offsets=[4, 4])}, EIGHT), "overlaps"),
    "cut short": (framed({"a": GOOD}, bytes(5)), r"cut short: it has \d+ bytes, its header promises \d+"),
    "bytes left over": (framed({"a": GOOD}, bytes(11)), "3 more than its header promises"),
    "bytes without tensors": (framed({}, bytes(1)), "1 more than its header promises"),
    "metadata is a list": (framed({"__metadata__": []}), "not a map of strings"),
    "metadata is null": (framed({"__metadata__": None}), "not a map of strings"),
    "metadata holds a number": (framed({"__metadata__": {"a": 1}}), "not a map of strings"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "cause"), HOSTILE.values(), ids=HOSTILE)
def test_a_lie_is_named_with_the_file(file, content, cause):
    file.write_bytes(content)
    with pytest.raises(HeaderError, match=cause) as caught:
        read_header(file)
    assert caught.value.problem.place == str(file)
    assert len(caught.value.problem.what) < 400


# What we refuse and the library takes: it reads these in one of several possible ways.
STRICTER = {
    "leading space",
    "same name twice",
    "entry is a list",
    "key too many",
    "too many dimensions",
    "metadata is null",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals_agree_with_the_safetensors_library(name):
    assert accepted_by_safetensors(HOSTILE[name][0]) == (name in STRICTER)


def test_a_missing_file_is_named(file):
    with pytest.raises(CheckpointError, match="No such file") as caught:
        read_header(file)
    assert caught.value.problem.place == str(file)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(HeaderError, match="directory"):
        read_header(tmp_path)


def test_nothing_behind_the_header_is_read(file):
    # The tensor is a hole in the file: reading it would need 64 GiB of memory.
    spec = TensorSpec("x", DTYPES["U8"], (2**36,))
    head, starts = header_bytes([spec], {})
    file.write_bytes(head)
    os.truncate(file, len(head) + spec.nbytes)
    header = read_header(file)
    assert header.nbytes == len(head) == starts["x"]
    assert header.tensors[0].extent.nbytes == 2**36


def test_long_names_are_shortened_in_messages(file):
    file.write_bytes(framed({"n" * 10_000: entry(dtype="F31")}, EIGHT))
    with pytest.raises(HeaderError, match="n…") as caught:
        read_header(file)
    assert len(str(caught.value)) < 500


def test_torch_files_are_read(file):
    dtypes = [getattr(torch, dtype.title) for dtype in DTYPES.values() if not dtype.name.startswith(("F4", "F6"))]
    tensors = {
        f"t.{dtype}": torch.arange(24, dtype=torch.uint8).repeat_interleave(dtype.itemsize).view(dtype).reshape(2, 3, 4)
        if dtype is not torch.bool
        else torch.arange(24).reshape(2, 3, 4) % 2 == 0
        for dtype in dtypes
    }
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 5), "packed": torch.zeros(2, 4, dtype=torch.uint8)}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt", "by": "ü"})
    header = read_header(file)
    assert header.metadata == {"format": "pt", "by": "ü"}
    assert {stored.spec.name for stored in header.tensors} == set(tensors)
    for stored in header.tensors:
        tensor = tensors[stored.spec.name]
        assert str(tensor.dtype) == f"torch.{stored.spec.dtype.title}"
        assert tuple(tensor.shape) == stored.spec.shape
        assert read_tensor(stored).tobytes() == tensor.flatten().view(torch.uint8).numpy().tobytes()


ALL = list(DTYPES.values())
NUMPY = [dtype for dtype in ALL if np.dtype(dtype.storage).kind != "u" or dtype.kind == "uint"]
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def spec_lists(draw, dtypes=ALL):
    def spec(name):
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(shapes)
        return TensorSpec(name, dtype, shape if dtype.bits >= 8 else (*shape, 4))

    return [spec(name) for name in draw(st.lists(names, unique=True, max_size=5))]


metadata = st.dictionaries(names, names, max_size=2)


@given(spec_lists(), metadata)
@settings(deadline=None)
def test_our_headers_are_read_by_safetensors_and_by_us(specs, metadata):
    head, starts = header_bytes(specs, metadata)
    content = head + bytes(sum(spec.nbytes for spec in specs))
    assert len(head) % 8 == 0
    theirs = {name: (t["dtype"], tuple(t["shape"])) for name, t in deserialize(content)}
    assert theirs == {spec.name: (spec.dtype.name, spec.shape) for spec in specs}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.safetensors")
        file.write_bytes(content)
        header = read_header(file)
        with safe_open(file, "np") as opened:
            assert (opened.metadata() or {}) == metadata
    assert header.metadata == metadata
    assert {stored.spec.name: stored.spec for stored in header.tensors} == {spec.name: spec for spec in specs}
    assert {stored.spec.name: stored.extent.start for stored in header.tensors} == starts


@given(spec_lists(NUMPY), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_numpy_files_are_read_bit_for_bit(specs, random):
    arrays = {
        spec.name: np.frombuffer(random.randbytes(spec.nbytes), "|u1").view(spec.dtype.storage).reshape(spec.shape)
        if spec.dtype.kind != "bool"
        else np.ones(spec.shape, bool)
        for spec in specs
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.safetensors")
        safetensors.numpy.save_file(arrays, file)
        read = {stored.spec.name: read_tensor(stored) for stored in read_header(file).tensors}
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_header_bytes_refuses_a_name_twice_and_the_name_of_the_metadata():
    spec = TensorSpec("a", DTYPES["U8"], (1,))
    with pytest.raises(ValueError, match="'a'"):
        header_bytes([spec, spec], {})
    with pytest.raises(ValueError, match="'__metadata__'"):
        header_bytes([TensorSpec("__metadata__", DTYPES["U8"], (1,))], {})


sizes = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64, 1.0, True, None, "1", []]))
VALUES = {
    "dtype": st.one_of(st.sampled_from(list(DTYPES)), st.sampled_from(["f32", "", None, 1])),
    "shape": st.one_of(st.lists(sizes, max_size=3), sizes),
    "data_offsets": st.one_of(st.lists(sizes, min_size=1, max_size=3), sizes),
}


def check_against_safetensors(content, exact):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.safetensors")
        file.write_bytes(content)
        try:
            header = read_header(file)
        except HeaderError:
            assert not (exact and accepted_by_safetensors(content))
            return
    assert accepted_by_safetensors(content)
    end = header.nbytes
    for stored in header.tensors:
        assert stored.extent.start == end
        assert stored.extent.nbytes == stored.spec.nbytes >= 0
        end = stored.extent.stop
    assert end == len(content)


@given(spec_lists(), metadata, st.data())
@settings(deadline=None, max_examples=200)
def test_one_changed_value_is_judged_as_safetensors_judges_it(specs, metadata, data):
    head, _ = header_bytes(specs, metadata)
    header = json.loads(head[8:])
    if victims := sorted(set(header) - {"__metadata__"}):
        victim = data.draw(st.sampled_from(victims))
        key = data.draw(st.sampled_from(list(VALUES)))
        header[victim][key] = data.draw(VALUES[key])
    length = sum(spec.nbytes for spec in specs) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    check_against_safetensors(framed(header, bytes(max(length, 0))), exact=True)


@given(spec_lists(), metadata, st.data())
@settings(deadline=None, max_examples=200)
@example([TensorSpec("a", DTYPES["U8"], (0,))], {}, None)
def test_changed_bytes_never_lead_outside_of_the_file(specs, metadata, data):
    head, _ = header_bytes(specs, metadata)
    content = bytearray(head + bytes(sum(spec.nbytes for spec in specs)))
    for _ in range(data.draw(st.integers(1, 3)) if data else 0):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(
            st.sampled_from([b"", b"-", b"0", b"9", b'"', b"[", b"]", b"}", b",", b"\\", b"\0", b"\xff"])
        )
        content[place : place + data.draw(st.integers(0, 1))] = change
        content = content or bytearray(1)
    check_against_safetensors(bytes(content), exact=False)
