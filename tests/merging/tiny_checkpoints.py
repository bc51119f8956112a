"""Tiny checkpoints: torch tensors by name, written and read by the safetensors library, and recipes about them."""

import json
import math

import torch
import yaml
from safetensors.torch import load_file, save_file

from mergekit.merging import JobOptions, merge_recipe
from mergekit.plan import PlanOptions

INDEX = "model.safetensors.index.json"
SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8}
TITLES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def llama_config(layers=4, width=32, inner=48, rows=64, tied=False, dtype=torch.float32, **more):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "torch_dtype": TITLES[dtype],
        **more,
    }


def llama_shapes(config):
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (rows, width)}
    layer = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (width // 2, width),
        "self_attn.v_proj.weight": (width // 2, width),
        "self_attn.o_proj.weight": (width, width),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{suffix}": shape for suffix, shape in layer.items()}
    shapes["model.norm.weight"] = (width,)
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": (rows, width)}


def mixtral():
    """The config and the shapes of a model with three experts, stored one by one, in each of two layers."""
    config = llama_config(layers=2, model_type="mixtral", num_local_experts=3)
    shapes = {name: shape for name, shape in llama_shapes(config).items() if ".mlp." not in name}
    for layer in range(2):
        stem = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{stem}.gate.weight"] = (3, 32)
        for expert in range(3):
            shapes |= {f"{stem}.experts.{expert}.{w}.weight": (48, 32) for w in ("w1", "w3")}
            shapes[f"{stem}.experts.{expert}.w2.weight"] = (32, 48)
    return config, shapes


def random_tensors(shapes, seed, dtype=torch.float32, scale=0.05):
    random = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=random) * scale).to(dtype) for name, shape in shapes.items()}


def fine_tuned(base, seed, scale=0.01):
    """The same tensors, each floating one with some noise."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + scale * torch.randn(tensor.shape, generator=random)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def write_model(folder, tensors, config, shards=1):
    """A model folder; with several shards an index, and tensors dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_llama(folder, seed=0, dtype=torch.float32, shards=1, **settings):
    """A random Llama; returns its tensors."""
    config = llama_config(dtype=dtype, **settings)
    tensors = random_tensors(llama_shapes(config), seed, dtype)
    write_model(folder, tensors, config, shards)
    return tensors


def write_hollow(folder, shapes, config, dtype="BF16"):
    """A model whose weights are a hole in a sparse file: any size, no bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    entries, end = {}, 0
    for name, shape in shapes.items():
        own = dtype[name] if isinstance(dtype, dict) else dtype
        start, end = end, end + math.prod(shape) * SIZES[own]
        entries[name] = {"dtype": own, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    return folder


def read_model(folder):
    """All tensors of a model folder, as the safetensors library reads them."""
    index = folder / INDEX
    files = [folder / "model.safetensors"]
    if index.exists():
        files = [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def octets(tensor):
    """The bytes of a tensor, to be compared without regard to NaN and signed zeros."""
    return (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def recipe(method, models=None, **settings):
    """The text of a recipe; models are folders, or pairs of a folder and its parameters."""
    content = {"merge_method": method}
    if models is not None:
        content["models"] = [entry(model) for model in models]
    content.update({key: value for key, value in settings.items() if value is not None})
    return yaml.safe_dump(content, sort_keys=False)


def entry(model, **more):
    folder, parameters = model if isinstance(model, tuple) else (model, None)
    written = {"model": str(folder), **more}
    return written if parameters is None else {**written, "parameters": parameters}


def piece(*sources, **settings):
    """A slice of (folder, first, last) or (folder, first, last, parameters)."""
    entries = [
        entry((source[0], source[3] if source[3:] else None), layer_range=list(source[1:3])) for source in sources
    ]
    return {"sources": entries, **settings}


def assert_rounded(found, reference, sharpness=1e-6):
    """Each entry is the reference rounded to its dtype, up to float32 arithmetic before the rounding.

    Parameters:
        reference: float64.
        sharpness: error of the arithmetic, relative to the greatest entry.
    """
    reference = torch.as_tensor(reference)
    assert found.shape == reference.shape
    if not found.numel():
        return
    finfo = torch.finfo(found.dtype)
    step = torch.clamp(reference.abs() * finfo.eps / 2, min=finfo.tiny * finfo.eps)
    error = (found.double() - reference).abs()
    assert (error <= 1.001 * step + sharpness * reference.abs().max()).all(), error.max()


class Watch:
    """Keeps what a merge tells."""

    def __init__(self):
        self.plan, self.bytes, self.report = None, [], None

    def planned(self, plan):
        self.plan = plan

    def advance(self, nbytes):
        self.bytes.append(nbytes)  # a list may grow from any thread

    @property
    def warnings(self):
        return [problem.what for problem in self.plan.findings.warnings]

    @property
    def notices(self):
        return self.plan.findings.notices


def merge(text, out, *, device=None, overwrite=False, **options):
    """Carry out a recipe, and return what was told; options are those of planning."""
    watch = Watch()
    settings = JobOptions(PlanOptions(**options), device=device, overwrite=overwrite)
    watch.report = merge_recipe(text, out, file="merge.yml", options=settings, progress=watch)
    return watch
