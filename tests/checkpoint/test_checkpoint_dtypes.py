import numpy as np
import pytest
import torch
from safetensors import SafetensorError, deserialize

from mergekit.checkpoint import DTYPES, TensorSpec, dtype_titled, header_bytes

PACKED = ("F4", "F6_E2M3", "F6_E3M2")


@pytest.mark.parametrize("name", DTYPES)
def test_safetensors_knows_every_dtype_and_agrees_on_its_size(name):
    spec = TensorSpec("x", DTYPES[name], (8,))
    head, _ = header_bytes([spec], {})
    [(_, tensor)] = deserialize(head + bytes(spec.nbytes))
    assert (tensor["dtype"], tensor["shape"], len(tensor["data"])) == (name, [8], DTYPES[name].bits)


def test_no_dtype_of_safetensors_is_missing():
    text = b'{"x":{"dtype":"?","shape":[],"data_offsets":[0,0]}}'
    with pytest.raises(SafetensorError) as caught:
        deserialize(len(text).to_bytes(8, "little") + text)
    known = str(caught.value).split("expected one of ")[1].split(" at line")[0]
    assert {name.strip("`") for name in known.split(", ")} == set(DTYPES)


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in PACKED])
def test_title_is_the_name_in_torch_with_the_same_size(name):
    dtype = getattr(torch, DTYPES[name].title)
    assert dtype.itemsize * 8 == DTYPES[name].bits


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_storage_holds_one_element_or_one_byte(dtype):
    assert np.dtype(dtype.storage).itemsize * 8 == max(dtype.bits, 8)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_title_leads_back(dtype):
    assert dtype_titled(dtype.title) is dtype


def test_unknown_title_names_the_most_similar_one():
    with pytest.raises(ValueError, match=r"unknown dtype `bfloat61`, did you mean `bfloat16`\?"):
        dtype_titled("bfloat61")


def test_unknown_title_without_a_similar_one():
    with pytest.raises(ValueError, match=r"unknown dtype `zzz`$"):
        dtype_titled("zzz")


def test_packed_elements_must_fill_bytes():
    assert TensorSpec("x", DTYPES["F4"], (3, 2)).nbytes == 3
    assert TensorSpec("x", DTYPES["F6_E2M3"], (4,)).nbytes == 3
    with pytest.raises(ValueError, match="3 elements of F4 do not fill whole bytes"):
        TensorSpec("x", DTYPES["F4"], (3,))


def test_scalar_and_empty_tensors_have_sizes():
    assert TensorSpec("x", DTYPES["F32"], ()).nbytes == 4
    assert TensorSpec("x", DTYPES["F32"], (0, 7)).nbytes == 0
