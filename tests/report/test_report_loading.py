"""What transformers says about a merge."""

import json
import sys

import pytest

from mergekit.report import verify_folder
from mergekit.report.loading import try_loading

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}


@pytest.fixture
def model(tmp_path):
    """A model that transformers has written."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(model, **entries):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **entries}))


def whats(model):
    loading = try_loading(model)
    return loading.doubt, [problem.what for problem in loading.problems]


def test_its_own_models_are_fine(model):
    assert whats(model) == ("", [])
    found = verify_folder(model, full=True)
    assert found.ok
    assert "transformers" in found.checked


def test_a_layer_too_few_and_one_too_many(model):
    change(model, num_hidden_layers=3)
    assert "`model.layers.2." in whats(model)[1][0]
    assert whats(model)[1][0].startswith("weights that transformers expects are not there: ")
    change(model, num_hidden_layers=1)
    (what,) = whats(model)[1]
    assert what.startswith("transformers would not load weights that are there: `model.layers.1.")
    assert what.endswith(" and 6 more")


def test_other_shapes(model):
    change(model, intermediate_size=25)
    _, found = whats(model)
    assert found
    assert "shape" in found[0] or "mismatch" in found[0]


def test_a_config_that_is_refused(model):
    change(model, num_hidden_layers="many")
    (what,) = whats(model)[1]
    assert what.startswith("transformers does not accept it")


def test_what_cannot_be_judged_is_said(model):
    change(model, model_type="made_up")
    doubt, found = whats(model)
    assert (doubt.endswith("does not know the model type `made_up`"), found) == (True, [])
    change(model, model_type="llama", architectures=["MyModel"])
    assert whats(model) == ("names of weights are not compared for `MyModel`", [])
    remarks = verify_folder(model, full=True).remarks
    assert remarks == ("names of weights are not compared for `MyModel`",)


def test_without_transformers_that_is_said(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert whats(model) == ("transformers is not installed", [])
