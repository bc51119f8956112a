"""Files of `torch.save`: torch writes them and says what is in them."""

import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit.checkpoint import open_checkpoint, open_pickle, read_tensor
from mergekit.errors import CheckpointError, HeaderError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
]
KINDS = {
    "zip": {},
    "protocol 3": {"pickle_protocol": 3},
    "protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.fixture(params=KINDS)
def save(request, tmp_path):
    """Write with torch, in every way that it knows; returns the file."""

    def written(value):
        torch.save(value, tmp_path / "pytorch_model.bin", **KINDS[request.param])
        return tmp_path / "pytorch_model.bin"

    return written


def numbers(count, dtype):
    values = torch.arange(count) * 37 % 251
    if dtype == torch.bool:
        return values % 3 == 0
    if dtype == torch.float8_e8m0fnu:
        return values.to(torch.uint8).view(dtype)
    return (values - 125).to(dtype) if dtype.is_floating_point else values.to(dtype)


def octets(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def hold_the_same(pickled, tensors):
    assert [stored.spec.name for stored in pickled.tensors] == list(tensors)
    for stored, tensor in zip(pickled.tensors, tensors.values(), strict=True):
        assert stored.spec.dtype.title == str(tensor.dtype).removeprefix("torch.")
        assert stored.spec.shape == tuple(tensor.shape)
        assert read_tensor(stored).tobytes() == octets(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(save, dtype):
    tensors = {"a": numbers(12, dtype).reshape(3, 4), "b": numbers(5, dtype)}
    pickled = open_pickle(save(tensors))
    hold_the_same(pickled, tensors)
    assert pickled.remarks == ()
    assert all(stored.strides is None for stored in pickled.tensors)


def test_scalars_and_empty_tensors(save):
    tensors = {"scalar": torch.tensor(3.5), "steps": torch.tensor(7), "flag": torch.tensor(True)}
    tensors |= {"empty": torch.empty(0), "flat": torch.empty(3, 0, 2, dtype=torch.bfloat16).transpose(0, 2)}
    pickled = open_pickle(save(tensors))
    hold_the_same(pickled, tensors)
    assert all(stored.strides is None for stored in pickled.tensors)


def test_an_empty_tensor_alone(save):
    hold_the_same(open_pickle(save({"empty": torch.empty(2, 0)})), {"empty": torch.empty(2, 0)})


WHOLE = numbers(120, torch.float32).reshape(4, 5, 6)
VIEWS = {
    "transposed": WHOLE.transpose(0, 2),
    "matrix": WHOLE.reshape(20, 6).t(),
    "permuted": WHOLE.permute(1, 2, 0),
    "columns": WHOLE[:, :, 1:4],
    "every second": WHOLE[::2, 1::2],
    "expanded": WHOLE[0, :1].expand(7, 6),
    "expanded scalar": torch.tensor(2.5).expand(3, 3),
    "unfolded": torch.arange(9.0).unfold(0, 3, 1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_keep_their_strides(save, view):
    pickled = open_pickle(save({view: VIEWS[view]}))
    hold_the_same(pickled, {view: VIEWS[view]})
    assert pickled.tensors[0].strides == VIEWS[view].stride()


def test_views_that_are_in_order_have_no_strides(save):
    tensors = {"rows": WHOLE[1:3], "one": WHOLE[2, 3, 4], "column of one row": WHOLE[1:2, 2:3, 1:4].transpose(0, 1)}
    pickled = open_pickle(save(tensors))
    hold_the_same(pickled, tensors)
    assert [stored.strides for stored in pickled.tensors] == [None, None, None]
    assert pickled.tensors[0].extent.nbytes == 2 * 5 * 6 * 4


def test_tensors_that_share_their_storage_share_bytes(save):
    pickled = open_pickle(save({"embed": WHOLE, "head": WHOLE, "row": WHOLE[1]}))
    embed, head, row = pickled.tensors
    assert embed.extent == head.extent
    assert row.extent.start == embed.extent.start + 120
    hold_the_same(pickled, {"embed": WHOLE, "head": WHOLE, "row": WHOLE[1]})


def test_parameters_and_whole_state_dicts(save):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = module.state_dict()
    assert state._metadata  # an attribute of the dict, which is pickled with it
    hold_the_same(open_pickle(save(state)), state)
    hold_the_same(open_pickle(save(dict(module.named_parameters()))), dict(module.named_parameters()))


def test_tensors_with_attributes(save):
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.zeros(3))
    tensor.note, parameter.note = "tied", "tied"
    hold_the_same(open_pickle(save({"a": tensor, "b": parameter})), {"a": tensor, "b": parameter})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_inside(save, key):
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    pickled = open_pickle(save({"epoch": 3, key: OrderedDict(tensors), "optimizer": optimizer, "args": [1, None]}))
    hold_the_same(pickled, tensors)
    assert pickled.remarks == (f"only `{key}` is read, not `epoch`, `optimizer`, `args` beside it",)


def test_the_state_dict_wins_over_other_mappings(save):
    pickled = open_pickle(save({"ema": {"a": torch.zeros(2)}, "state_dict": {"a": torch.ones(2)}}))
    hold_the_same(pickled, {"a": torch.ones(2)})
    assert "`ema`" in pickled.remarks[0]


def test_a_state_dict_with_tensors_beside_it(save):
    pickled = open_pickle(save({"step": torch.tensor(3), "model": {"a": torch.ones(2)}}))
    hold_the_same(pickled, {"a": torch.ones(2)})
    assert pickled.remarks == ("only `model` is read, not `step` beside it",)


def test_a_state_dict_alone_needs_no_remark(save):
    assert open_pickle(save({"state_dict": {"a": torch.ones(2)}})).remarks == ()


def test_plain_values_are_remarked_on(save):
    plain = {"step": 3, "loss": 0.5, "big": 2**80, "name": "x", "nothing": None, "yes": True, "bytes": b"ab"}
    plain |= {"list": [1, [2]], "tuple": (1, 2, 3, 4), "set": {1}, "device": torch.device("cpu"), "size": WHOLE.shape}
    plain |= {"dtype": torch.float16, "dict": {1: {(1, 2): 3}}}
    pickled = open_pickle(save({"a": torch.ones(2), **plain, 7: torch.ones(2)}))
    hold_the_same(pickled, {"a": torch.ones(2)})
    [remark] = pickled.remarks
    assert remark.startswith("not used, because they are no tensors: `step`, `loss`, `big`")
    assert f"and {len(plain) + 1 - 5} more" in remark


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a tensor"),
        ({}, "no tensors by name"),
        ({"a": [torch.ones(2)]}, "no tensors by name"),
        ({0: torch.ones(2)}, "no tensors by name"),
        ({"generator": {"a": torch.ones(2)}, "critic": {"a": torch.ones(2)}}, "mappings, `generator`, `critic`"),
        ({"__metadata__": torch.ones(2)}, "`__metadata__`"),
        ({"a\ud800": torch.ones(2)}, "surrogates not allowed"),
    ],
)
def test_what_is_no_state_dict_is_refused(save, value, what):
    refused(save(value), what)


def refused(file, what):
    with pytest.raises(HeaderError) as caught:
        open_pickle(file)
    assert what in caught.value.problem.what
    assert caught.value.problem.place == str(file)
    assert "torch.save(model.state_dict()" in caught.value.problem.expected


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse tensors (`torch._utils._rebuild_sparse_tensor`)"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised tensors"),
        (lambda: torch.ones(2, dtype=torch.complex128), "complex128 tensors"),
        (lambda: torch._neg_view(torch.ones(2)), "conjugated or negated"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated or negated"),
        (lambda: torch.ones(2, device="meta"), "empty (meta) tensors"),
        (lambda: torch.nn.Linear(2, 2), "`torch.nn.modules.linear.Linear`"),
        (lambda: np.float64(3), "multiarray.scalar`"),
        (lambda: complex(1, 2), "`__builtin__.complex`"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_read_is_refused_by_name(tmp_path, make, what):
    torch.save({"a": torch.ones(1), "b": make()}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", what)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint", b"\x93NUMPY", pickle.dumps(3), b"\x80\x02"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(HeaderError):
        open_pickle(tmp_path / "x.pt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file") as caught:
        open_pickle(tmp_path / "x.pt")
    assert caught.value.problem.place == str(tmp_path / "x.pt")


def test_the_head_tells_files_apart(save):
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    first = open_pickle(save(tensors)).head
    assert len(first) > 100
    assert b"float" in first.lower()
    assert open_pickle(save({**tensors, "b": torch.zeros(4)})).head != first


strides = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7)), max_size=4)


@settings(deadline=None)
@given(strides=strides, offset=st.integers(0, 5))
def test_any_strides(tmp_path_factory, strides, offset):
    tensor = torch.arange(200.0).as_strided([n for n, _ in strides], [step for _, step in strides], offset)
    file = tmp_path_factory.mktemp("strides") / "x.pt"
    torch.save({"a": tensor}, file)
    hold_the_same(open_pickle(file), {"a": tensor})


INDEX = "pytorch_model.bin.index.json"
FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def values(checkpoint):
    return {name: float(read_tensor(stored)[0]) for name, stored in checkpoint.tensors.items()}


def test_a_folder_with_one_file(root):
    torch.save({"a": torch.ones(2), "epoch": 3}, root / "pytorch_model.bin")
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1}
    assert checkpoint.shards == (root / "pytorch_model.bin",)
    assert checkpoint.remarks == ("`pytorch_model.bin`: not used, because they are no tensors: `epoch`",)
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_a_folder_with_shards(root):
    torch.save({"a": torch.ones(2), "c": torch.ones(2)}, root / FIRST)
    torch.save({"b": torch.full((2,), 2.0)}, root / SECOND)
    (root / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1, "b": 2}
    assert checkpoint.shards == (root / FIRST, root / SECOND)
    assert checkpoint.remarks == (f"not used, because `{INDEX}` does not name them there: `c`",)


def test_numbered_shards_without_index(root):
    torch.save({"a": torch.ones(2)}, root / FIRST)
    torch.save({"b": torch.full((2,), 2.0)}, root / SECOND)
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 1, "b": 2}
    assert checkpoint.remarks == (f"there is no `{INDEX}`: every shard was asked for its tensors",)


def test_missing_shards(root):
    torch.save({"a": torch.ones(2)}, root / FIRST)
    (root / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))
    with pytest.raises(CheckpointError, match=f"missing shards: `{SECOND}`"):
        open_checkpoint(root)


def test_safetensors_win(root):
    from safetensors.torch import save_file

    torch.save({"a": torch.ones(2)}, root / "pytorch_model.bin")
    save_file({"a": torch.zeros(2)}, root / "model.safetensors")
    checkpoint = open_checkpoint(root)
    assert values(checkpoint) == {"a": 0}
    assert checkpoint.remarks == ()


def test_a_pickled_file_instead_of_a_folder(root):
    torch.save({"a": torch.ones(2)}, root / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a file, not a folder") as caught:
        open_checkpoint(root / "pytorch_model.bin")
    assert caught.value.problem.hint == f"`{root}`"
