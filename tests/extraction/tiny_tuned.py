"""Tiny models of several families and fine-tunes of them, made by transformers; and what peft makes of adapters."""

import warnings

import torch
import transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

from mergekit.lora.decomposition import Goal
from mergekit.lora.extraction import Running, Wish, extract_lora, plan_extraction
from mergekit.lora.units import Choice
from mergekit.report.difference import reference

SIZES = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {**SIZES, **HEADS, "moe_intermediate_size": 24, "decoder_sparse_step": 1, "mlp_only_layers": []}


def llama(**more):
    return _random(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES, **HEADS, **more))


def qwen2():
    return _random(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**SIZES, **HEADS))


def gpt2():
    config = transformers.GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    return _random(transformers.GPT2LMHeadModel, config)


def mixtral():
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2)
    return _random(transformers.MixtralForCausalLM, config)


def qwen3_moe():
    config = transformers.Qwen3MoeConfig(**EXPERTS, num_experts=4, num_experts_per_tok=2, head_dim=8)
    return _random(transformers.Qwen3MoeForCausalLM, config)


def gpt_oss():
    config = transformers.GptOssConfig(
        **SIZES, **HEADS, head_dim=8, num_local_experts=3, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    return _random(transformers.GptOssForCausalLM, config)


def _random(kind, config):
    """The same weights every time, none of them 0."""
    torch.manual_seed(1)
    model = kind(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


def tune(model, rank=3, only="", scale=0.1):
    """Add something of this rank to every matrix whose name has `only` in it, and noise to every vector."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                *stack, lines, columns = parameter.shape if parameter.dim() > 1 else (1, parameter.numel())
                left = torch.randn(*stack, lines, rank, generator=draw)
                right = torch.randn(*stack, rank, columns, generator=draw)
                parameter += scale * (left @ right).reshape(parameter.shape)
    return model


def save(model, folder, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **settings)
    return folder


def extract(folder, rank=128, *, out="adapter", check=True, overwrite=False, epsilon=0.0, energy=None, **settings):
    """Extract an adapter of `folder/tuned` to `folder/base`; returns its report."""
    fields = {field: settings.pop(field) for field in ("distribute", "exact", "dtype") if field in settings}
    wish = Wish(Goal(rank, epsilon, energy), Choice(**settings), **fields)
    plan = plan_extraction(reference(str(folder / "base")), reference(str(folder / "tuned")), wish)
    return extract_lora(plan, folder / out, Running(check=check, overwrite=overwrite, workers=2))


def load(folder, rows=None, adapter="adapter"):
    """The base with the adapter, as peft loads it; resized if rows are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        if rows:
            base.resize_token_embeddings(rows)
        return peft.PeftModel.from_pretrained(base, folder / adapter)


def merged(folder, rows=None, adapter="adapter"):
    """What peft makes of base and adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(folder, rows, adapter).merge_and_unload()


def logits(model):
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        return model.eval()(tokens).logits


def assert_restored(found, tuned, tolerance=2e-6, but=()):
    """All weights are those of the fine-tune."""
    wanted, own = tuned.state_dict(), found.state_dict()
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if not any(part in name for part in but):
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
