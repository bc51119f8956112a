"""lm-eval with tasks of one's own, as a published guide calls the search."""

import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mergekit.cli.main import commands
from mergekit.evolution.harness import known_tasks

pytestmark = pytest.mark.filterwarnings("default")  # lm-eval and what it imports
GUIDE = """
genome:
  models:
    - models/llama/a
    - models/llama/b
  merge_method: task_arithmetic
  base_model: models/llama/base
  layer_granularity: 2
tasks:
  - name: local_task
    metric: "acc,none"
"""
TASK = {
    "task": "local_task",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "tasks/questions.json"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["a", "b"],
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
    ],
}


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def folder(shared_folder):
    """The folder in which the guide's reader is."""
    folder = shared_folder
    own = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=len(own), max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **sizes)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "models" / "llama" / name)
        own.save_pretrained(folder / "models" / "llama" / name)
    (folder / "tasks").mkdir()
    questions = [{"question": f"question {number}", "answer": number % 2} for number in range(12)]
    (folder / "tasks" / "questions.json").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    (folder / "tasks" / "local_task.yaml").write_text(yaml.safe_dump(TASK), encoding="utf-8")
    (folder / "evolve.evolve.yml").write_text(GUIDE, encoding="utf-8")
    return folder


def evolve(*arguments, code=0):
    """The command in this process, which imports lm-eval once for all tests."""
    done = CliRunner().invoke(commands, ["evolve", *arguments, "--task-search-path", "tasks", "--num-threads", "1"])
    assert done.exit_code == code, done.output
    return done


def test_the_search_of_a_published_guide(folder):
    called = "evolve.evolve.yml --storage-path ws --n-iterations 3 --task local_task"  # and where the task is
    assert "local_task" in evolve(*called.split()).stdout
    history = json.loads((folder / "ws" / "history.json").read_text(encoding="utf-8"))
    accuracies = [trial["objectives"]["local_task"] for trial in history["trials"]]
    assert len(accuracies) == 3
    assert all(round(accuracy * 12, 6) in range(13) for accuracy in accuracies)
    assert [trial["score"] for trial in history["trials"]] == accuracies
    best = yaml.safe_load((folder / "ws" / "best_config.yaml").read_text(encoding="utf-8"))
    assert [piece["sources"][0]["model"] for piece in best["slices"]] == ["models/llama/a"]
    assert (folder / "ws" / "final_model" / "model.safetensors").is_file()
    assert (folder / "ws" / "final_model" / "tokenizer.json").is_file()


def test_the_direction_of_a_metric_limit_and_shuffle(folder):
    content = yaml.safe_load(GUIDE) | {"limit": 4, "shuffle": True, "num_fewshot": 0}
    content["tasks"] = [{"name": "local_task", "metric": "brier_score,none", "weight": 2}]
    (folder / "brier.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = evolve("brier.yml", "--storage-path", "brier", "--max-fevals", 2, "--json", "--no-save-final-model")
    for trial in json.loads(done.stdout)["trials"]:
        assert trial["score"] == pytest.approx(-2 * trial["objectives"]["local_task"])


def test_mistakes_about_tasks_are_found_before_work(folder):
    unknown = evolve("evolve.evolve.yml", "--storage-path", "no", "--task", "local_tsk", code=4)
    assert "there is no task `local_tsk`" in unknown.stderr
    assert "try `local_task`" in unknown.stderr
    (folder / "metric.yml").write_text(GUIDE.replace("acc,none", "acc,nnoe"), encoding="utf-8")
    metric = evolve("metric.yml", "--storage-path", "metric", "--max-fevals", 2, code=4)
    assert "task `local_task` has no metric `acc,nnoe`" in metric.stderr
    assert "try `acc,none`" in metric.stderr


def test_how_tasks_are_run_decides_whether_a_search_goes_on(folder):
    arguments = ("--storage-path", "decided", "--max-fevals", 1, "--no-save-final-model")
    for limit, code in ((4, 0), (5, 5)):
        (folder / "limit.yml").write_text(yaml.safe_dump(yaml.safe_load(GUIDE) | {"limit": limit}), encoding="utf-8")
        done = evolve("limit.yml", *arguments, code=code)
    assert "a search with another `limit` (4, not 5)" in done.stderr


def test_a_tag_has_no_score(folder):
    for name in ("one", "two"):
        own = {**TASK, "task": f"tagged_{name}", "tag": "tagged"}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    known_tasks.cache_clear()
    (folder / "tag.yml").write_text(GUIDE.replace("local_task", "tagged"), encoding="utf-8")
    done = evolve("tag.yml", "--storage-path", "tag", "--max-fevals", 1, code=4)
    assert "`tagged` is a tag: there is no score of all its tasks together" in done.stderr
    assert "tagged_one, tagged_two" in done.stderr


def test_perplexity_of_models_with_a_tokenizer(folder):
    (folder / "text.txt").write_text("Ein Text, der länger ist als ein Fenster. " * 8, encoding="utf-8")
    content = yaml.safe_load(GUIDE) | {"objectives": [{"perplexity": "text.txt"}, {"bits_per_byte": "text.txt"}]}
    del content["tasks"]
    (folder / "text.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = "text.yml --storage-path text --max-fevals 2 --json --no-save-final-model"
    found = json.loads(evolve(*arguments.split()).stdout)
    for trial in found["trials"]:
        perplexity, bits = trial["objectives"].values()
        assert perplexity == pytest.approx(2**bits)  # a token of this tokenizer is a byte
        assert 100 < perplexity < 1000
