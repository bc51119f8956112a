"""The guide on GGUF files: its commands run and print what it shows."""

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from pages import ROOT, carry_out, text_of
from safetensors.torch import load_file

PAGE = text_of("guides/gguf.md")
MODELS = ROOT / "examples" / "models"


def write_gguf(file, model, kind):
    """An example model as a GGUF file; its shapes are all that matters here."""
    writer = gguf.GGUFWriter(file, "llama")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    tensors = load_file(MODELS / model / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    writer.add_embedding_length(shapes["model.norm.weight"][0])
    writer.add_feed_forward_length(shapes["model.layers.0.mlp.up_proj.weight"][0])
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_block_count(4)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, tensor in tensors.items():
        code = gguf.GGMLQuantizationType[kind if tensor.dim() == 2 else "F32"]
        packed = quantize(np.ascontiguousarray(tensor.float().numpy()), code)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def folder(tmp_path):
    """The folder in which the reader is."""
    write_gguf(tmp_path / "spanish.Q8_0.gguf", "es", "Q8_0")
    write_gguf(tmp_path / "german.F16.gguf", "de", "F16")
    return tmp_path


def test_its_commands_run_and_say_what_it_shows(folder):
    assert len(carry_out("guides/gguf.md", folder)) == 2
    written = load_file(folder / "merged" / "model.safetensors")
    assert written.keys() == load_file(MODELS / "es" / "model.safetensors").keys()


def test_it_names_every_architecture_that_is_read():
    from mergekit.checkpoint.gguf.architectures import architectures

    assert all(f"{name}," in PAGE or f"{name}." in PAGE or f"{name} (" in PAGE for name in architectures())
