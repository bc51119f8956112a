"""A GGUF file becomes the model that it was made from."""

import json

import numpy as np
import pytest
import torch
import transformers
from gguf_files import ARCHITECTURES, gguf_name, load, logits, write_gguf
from tiny_checkpoints import merge, read_model, recipe

from mergekit.checkpoint import open_checkpoint
from mergekit.checkpoint.gguf.architectures import architectures
from mergekit.errors import CheckpointError
from mergekit.report.verify import verify_folder


def converted(file, out, **settings):
    merge(recipe("passthrough", [file], **settings), out)
    return out


def test_float32_gives_the_same_model(architecture, originals, tmp_path):
    original = originals(architecture)
    file = write_gguf(tmp_path / "model.gguf", architecture, original)
    model = load(converted(file, tmp_path / "out"))
    assert type(model) is type(original)
    assert (logits(model) - logits(original)).abs().max() < 1e-5
    assert verify_folder(tmp_path / "out").ok


def test_the_config_says_what_the_original_said(architecture, originals, tmp_path):
    original = originals(architecture).config.to_dict()
    file = write_gguf(
        tmp_path / "model.gguf",
        architecture,
        originals(architecture),
        metadata={
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 0,
        },
    )
    (tmp_path / "config.json").write_text(open_checkpoint(file).text("config.json"))
    found = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    unsaid = {"initializer_range", "transformers_version", "_name_or_path", "architectures", "dtype"}
    if architecture == "phi3":
        unsaid |= {"original_max_position_embeddings"}
    differing = {
        key: (original[key], found.get(key)) for key in original.keys() - unsaid if original[key] != found.get(key)
    }
    assert differing == {}


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_transformers_reads_the_same_weights(quantisation, originals, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "llama3", originals("llama3"), quantisation)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    found = read_model(converted(file, tmp_path / "out", dtype="float32"))
    for name, tensor in reference.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_dtypes_stay_and_quantised_weights_become_float16(originals, tmp_path):
    for quantisation, dtype in (("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "F16")):
        file = write_gguf(tmp_path / f"{quantisation}.gguf", "llama", originals("llama"), quantisation)
        checkpoint = open_checkpoint(file)
        assert {s.spec.dtype.name for s in checkpoint.tensors.values() if len(s.spec.shape) == 2} == {dtype}
        assert {s.spec.dtype.name for s in checkpoint.tensors.values() if len(s.spec.shape) == 1} == {"F32"}
        out = converted(file, tmp_path / quantisation)
        title = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
        assert json.loads((out / "config.json").read_text())["dtype"] == title
        assert read_model(out)["lm_head.weight"].dtype == getattr(torch, title)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_threads_and_memory(threads, originals, tmp_path):
    files = [write_gguf(tmp_path / f"{kind}.gguf", "llama", originals("llama"), kind) for kind in ("Q5_1", "Q4_1")]
    text = recipe("linear", [(files[0], {"weight": 0.5}), (files[1], {"weight": 0.25})], dtype="float32")
    merge(text, tmp_path / "a", workers=2)
    merge(text, tmp_path / "b", workers=threads, max_memory=420_000_000)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_gguf_merges_with_safetensors(originals, tmp_path):
    original = originals("llama")
    original.save_pretrained(tmp_path / "folder")
    file = write_gguf(tmp_path / "model.gguf", "llama", original, "Q8_0")
    exact, rounded = read_model(tmp_path / "folder"), read_model(converted(file, tmp_path / "alone", dtype="float32"))
    for models in ([tmp_path / "folder", file], [file, tmp_path / "folder"]):
        out = tmp_path / f"out{models.index(file)}"
        merge(recipe("linear", [(model, {"weight": 1.0}) for model in models], dtype="float32"), out)
        merged = read_model(out)
        assert merged.keys() == exact.keys()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, (exact[name] + rounded[name]) / 2, rtol=1e-6, atol=1e-7)


def test_a_folder_with_one_gguf_file_is_a_model(originals, tmp_path):
    write_gguf(tmp_path / "it.gguf", "qwen2", originals("qwen2"))
    (tmp_path / "mmproj-it.gguf").write_bytes(b"a vision tower")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "config.json").write_text("{}")  # as repositories of GGUF files have it, for counting downloads
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    out = converted(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    assert (out / "LICENSE").read_text() == "free"
    assert json.loads((out / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen2"
    write_gguf(tmp_path / "other.gguf", "qwen2", originals("qwen2"))
    with pytest.raises(CheckpointError, match=r"one of the GGUF files as the model, `it\.gguf`"):
        open_checkpoint(tmp_path)


def test_the_report_names_the_file(llama, tmp_path):
    converted(llama, tmp_path / "out")
    (parent,) = json.loads((tmp_path / "out" / "merge_report.json").read_text())["parents"]
    assert parent["folder"] == str(llama)
    assert [file["name"] for file in parent["files"]] == [llama.name]
    assert len(parent["files"][0]["header_sha256"]) == 64


@pytest.mark.parametrize(
    ("metadata", "tensors", "what"),
    [
        ({}, {"blk.0.ffn_gate_exps.weight": (4, 32)}, "has no tensor 'blk.0.ffn_gate_exps.weight'"),
        ({"split.count": 3}, {}, "one part of a model"),
        ({"attention.head_count": 0}, {}, "`llama.attention.head_count` is 0"),
        ({"attention.head_count": 5}, {}, "does not have 5 heads"),
        ({"attention.head_count": [4, 4]}, {}, "differs between layers"),
        ({"embedding_length": "wide"}, {}, "`llama.embedding_length` is 'wide'"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, {}, "rms_epsilon` is 'nan'"),
        ({"rope.scaling.type": "magic", "rope.scaling.factor": 2.0}, {}, "positions are scaled by 'magic'"),
        ({}, {"rope_freqs.weight": (8,)}, "in another way than Llama 3.1"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(metadata, tensors, what, originals, tmp_path):
    made = {name: np.full(shape, 3.0, np.float32) for name, shape in tensors.items()}
    file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), metadata=metadata, tensors=made)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert what in caught.value.problem.what
    assert str(caught.value.problem.place) == str(file)


def test_other_architectures_are_refused_by_name(originals, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "llama", originals("llama"), kind="rwkv7")
    with pytest.raises(CheckpointError, match="architecture 'rwkv7' is not known"):
        open_checkpoint(file)


def test_every_architecture_of_the_table_is_tested():
    assert set(architectures()) == {gguf_name(name) for name in ARCHITECTURES}
