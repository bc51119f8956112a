"""Files that lie: one clear error, without much memory, whatever is in them."""

import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
from gguf_files import finish
from hypothesis import given
from hypothesis import strategies as st

from mergekit.checkpoint import open_checkpoint
from mergekit.checkpoint.gguf import read_container
from mergekit.errors import CheckpointError, HeaderError

STRING, ARRAY, U32 = 8, 9, 4


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def setting(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def row(name, shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def whole(settings=(), rows=(), *, version=3, magic=b"GGUF", counts=None, body=64):
    """A file of given parts; what it claims to have may be another number."""
    tensors, keys = counts or (len(rows), len(settings))
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(settings) + b"".join(rows)
    return head + b"\0" * (-len(head) % 32 + body)


def refused(tmp_path, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        read_container(file)
    assert caught.value.problem.place == str(file)
    return caught.value.problem.what


BIG = 2**62
LIES = {
    "magic": (whole(magic=b"GGML"), "does not begin with `GGUF`"),
    "empty": (b"", "does not begin with `GGUF`"),
    "version 1": (whole(version=1), "version 1"),
    "big-endian": (whole(version=3 << 24), "big-endian"),
    "many tensors": (whole(counts=(BIG, 0)), "cut short"),
    "many settings": (whole(counts=(0, BIG)), "cut short"),
    "a few tensors too many": (whole(rows=[row("a")], counts=(9, 0)), "cut short"),
    "long key": (whole([struct.pack("<Q", 70000) + b"k" * 70000]), "70,000 bytes"),
    "long string": (whole([setting("k", STRING, struct.pack("<Q", BIG))]), "cut short"),
    "long list": (whole([setting("k", ARRAY, struct.pack("<IQ", U32, BIG))]), "cut short"),
    "long list of strings": (whole([setting("k", ARRAY, struct.pack("<IQ", STRING, BIG))]), "cut short"),
    "list of lists": (whole([setting("k", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U32, 0))]), "unknown type 9"),
    "type of value": (whole([setting("k", 77, b"")]), "unknown type 77"),
    "type of list": (whole([setting("k", ARRAY, struct.pack("<IQ", 77, 0))]), "unknown type 77"),
    "bytes in a key": (whole([setting(b"\xff", U32, b"\0" * 4)]), "is not UTF-8"),
    "bytes in a name": (whole(rows=[row(b"\xff\xfe")]), "the text before byte 34 is not UTF-8"),
    "a key twice": (whole([setting("k", U32, b"\0" * 4)] * 2), "the key 'k' twice"),
    "a tensor twice": (whole(rows=[row("a"), row("a", offset=32)]), "the tensor 'a' twice"),
    "dimensions": (whole(rows=[row("a", (1,) * 5)]), "5 dimensions"),
    "impossible shape": (whole(rows=[row("a", (2**32, 2**32))]), "impossible shape"),
    "beyond the end": (whole(rows=[row("a", (400,))]), "cut short"),
    "far away": (whole(rows=[row("a", offset=BIG)]), "cut short"),
    "overlap": (whole(rows=[row("a", (16,)), row("b", offset=32)]), "'b' overlaps 'a' by 32 bytes"),
    "same place": (whole(rows=[row("a"), row("b")]), "overlaps"),
    "not aligned": (whole(rows=[row("a", offset=4)]), "no multiple of 32"),
    "half a block": (whole(rows=[row("a", (16,), kind=8)]), "no multiple of 32"),
    "alignment": (whole([setting("general.alignment", U32, b"\0" * 4)]), "alignment is 0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_told(lie, tmp_path):
    content, what = LIES[lie]
    assert what in refused(tmp_path, content)


def test_unknown_kinds_of_blocks_are_told(tmp_path):
    file = tmp_path / "model.gguf"
    for kind, what in ((999, "type 999, which the installed `gguf` does not know"), (15, "Q8_K, which the library")):
        file.write_bytes(whole(rows=[row("a", (256,), kind)], body=4096))
        with pytest.raises(CheckpointError, match=what):
            read_container(file)


def test_what_comes_before_the_tensors_is_limited(tmp_path):
    """A sparse file is as long as one likes."""
    file = tmp_path / "model.gguf"
    with file.open("wb") as stream:
        stream.write(whole([setting("k", ARRAY, struct.pack("<IQ", 0, 2**30))]))
        stream.truncate(2**31)
    with pytest.raises(HeaderError, match="more than the 100,000,000 bytes that are allowed"):
        read_container(file)


def test_a_file_that_is_cut_anywhere_is_refused(llama, tmp_path):
    content = llama.read_bytes()
    head = read_container(llama).nbytes
    cuts = [*range(0, head, 7), head, head + 1, len(content) - 1]
    for cut in cuts:
        assert refused(tmp_path, content[:cut]), cut


@given(st.data())
def test_damaged_files_are_read_or_refused(llama, tmp_path_factory, data):
    content = bytearray(llama.read_bytes())
    head = read_container(llama).nbytes
    for place in data.draw(st.lists(st.integers(0, head - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    file.write_bytes(content)
    with suppress(CheckpointError):
        checkpoint = open_checkpoint(file)
        assert checkpoint.tensors
        assert all(isinstance(checkpoint.text(name), str) for name in checkpoint.texts)


def test_the_library_finds_the_same_in_sound_files(llama):
    ours, theirs = read_container(llama), gguf.GGUFReader(llama)
    assert list(ours.entries) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        entry = ours.entries[tensor.name]
        assert entry.shape == tuple(int(length) for length in reversed(tensor.shape))
        assert (entry.extent.start, entry.extent.nbytes) == (tensor.data_offset, tensor.n_bytes)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == pytest.approx(value)


@pytest.mark.parametrize("missing", ["token_embd.weight", "llama.block_count"])
def test_what_a_model_must_have(missing, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key in ("embedding_length", "attention.head_count", "block_count", "feed_forward_length", "context_length"):
        if not missing.endswith(key):
            writer.add_uint32(f"llama.{key}", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    name = "output_norm.weight" if missing.startswith("token") else "token_embd.weight"
    writer.add_tensor(name, np.zeros((4, 4), np.float32))
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        open_checkpoint(finish(writer, tmp_path / "model.gguf"))
