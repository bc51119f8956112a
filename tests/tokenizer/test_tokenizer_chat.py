"""Chat templates: what the bundled ones say, and which one a recipe gets."""

import json
from importlib import resources
from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mergekit.checkpoint import Checkpoint
from mergekit.errors import CheckpointError, Findings, Place
from mergekit.tokenizer import choose_template, tokenizer_config_with
from mergekit.tokenizer.chat import template_names

PLACE = Place("chat_template", "merge.yml", 3)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


def refuse(message):
    raise ValueError(message)


def render(name, turns, generate=True):
    text = (resources.files("mergekit.tokenizer") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders
    world.globals["raise_exception"] = refuse
    template = world.from_string(text)
    return template.render(messages=turns, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>")


def test_chatml():
    assert render("chatml", TURNS[1:3]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render("chatml", TURNS[1:2], generate=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_llama3():
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert render("llama3", [{"role": "user", "content": " Hi "}]) == (
        f"<s>{header('user')}Hi<|eot_id|>{header('assistant')}"
    )
    assert render("llama3", TURNS, generate=False).count("<s>") == 1


def test_mistral_folds_the_system_text_into_the_first_turn():
    assert render("mistral", TURNS) == "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]"


def test_mistral_insists_on_alternation():
    with pytest.raises(ValueError, match="alternate"):
        render("mistral", [TURNS[1], TURNS[3]])


def test_exaone_begins_with_a_system_turn():
    assert render("exaone", TURNS[1:3]) == (
        "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|assistant|]"
    )
    assert render("exaone", TURNS[:2], generate=False) == "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n"


def test_alpaca():
    assert render("alpaca", [*TURNS[:2], {"role": "user_context", "content": "a table"}]) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Input:\na table\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", template_names())
def test_named_templates_are_found(name):
    findings = Findings()
    text = choose_template(name, [], PLACE, findings)
    assert not findings.errors
    assert text
    jinja2.Environment().parse(text)


@pytest.mark.parametrize(
    ("wanted", "what", "hint"),
    [
        ("chatlm", "unknown chat template `chatlm`", "`chatml`"),
        ("{{ x }}", "too short", None),
        ("{% for m in messages %}{{ m.content }}", "not valid Jinja", None),
    ],
)
def test_mistakes_are_recorded_with_their_place(wanted, what, hint):
    findings = Findings()
    choose_template(wanted, [], PLACE, findings)
    (problem,) = findings.errors
    assert what in problem.what
    assert (problem.place, problem.hint) == (PLACE, hint)


def test_a_template_may_be_given_literally():
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    findings = Findings()
    assert choose_template(text, [], PLACE, findings) == text
    assert not findings.errors


def folder(root: Path, template, *, inline=False):
    root.mkdir()
    if inline:
        (root / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    elif template:
        (root / "chat_template.jinja").write_text(template)
    return root


def test_auto_takes_what_most_models_have(tmp_path):
    many = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": " {{ two }} "}]
    roots = [
        folder(tmp_path / "a", "{{ one }}"),
        folder(tmp_path / "b", "{{ two }}", inline=True),
        folder(tmp_path / "c", many, inline=True),
        folder(tmp_path / "d", None),
    ]
    models = [Checkpoint(root, {}, {}, (), ()) for root in roots]
    findings = Findings()
    assert choose_template("auto", models, PLACE, findings) == "{{ two }}"
    assert choose_template("auto", models[:2], PLACE, findings) == "{{ one }}"
    assert choose_template("auto", models[3:], PLACE, findings) is None
    assert findings.notices == ["no model has a chat template; none is written"]


def test_a_template_inside_the_settings_is_replaced():
    edited = tokenizer_config_with('{"chat_template": "{{ old }}"}', "here", "{{ new }}")
    assert edited is not None
    assert json.loads(edited) == {"chat_template": "{{ new }}"}
    assert tokenizer_config_with("{}", "here", "{{ new }}") is None


def test_settings_that_are_not_json_are_refused():
    with pytest.raises(CheckpointError, match="not valid JSON"):
        tokenizer_config_with("{", "tokenizer_config.json", "{{ new }}")
