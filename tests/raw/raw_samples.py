"""Raw checkpoints as torch and safetensors write them, recipes about them, and their merges."""

import json

import torch
import yaml
from safetensors.torch import load_file, save_file

from mergekit.merging import JobOptions
from mergekit.plan import PlanOptions
from mergekit.raw import Matching, merge_raw, plan_raw

OPTIONS = JobOptions(PlanOptions(workers=2))


def numbers(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(seed, dtype=torch.float32):
    """A small network that is no language model."""
    return {
        "conv.weight": numbers(seed, 4, 3, 3, 3, dtype=dtype),
        "norm.weight": 1 + numbers(seed + 1, 4, dtype=dtype) / 8,
        "head.weight": numbers(seed + 2, 5, 36, dtype=dtype),
        "head.scale": numbers(seed + 3, dtype=dtype),
    }


def write(file, tensors):
    """Write a checkpoint in the format that its name stands for."""
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    else:
        torch.save(tensors, file)
    return file


def write_shards(folder, stem, suffix, tensors, count=2):
    """Write shards and their index; returns the index."""
    folder.mkdir(parents=True)
    places = {}
    for number in range(count):
        part = dict(list(tensors.items())[number::count])
        file = write(folder / f"{stem}-{number + 1:05d}-of-{count:05d}{suffix}", part)
        places |= dict.fromkeys(part, file.name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def recipe(method, files, base=None, parameters=None, each=None, **more):
    """A recipe; `each` holds the parameters of every checkpoint."""
    entries = [{"model": str(file)} for file in files]
    for entry, own in zip(entries, each or [], strict=bool(each)):
        entry["parameters"] = own
    content = {"merge_method": method, "models": entries, "parameters": parameters or {}, **more}
    return yaml.safe_dump(content | ({"base_model": str(base)} if base else {}), sort_keys=False)


def merge(text, out, names="same", integers="same", options=OPTIONS):
    """Merge; returns the report."""
    return merge_raw(text, out, file="raw.yml", options=options, matching=Matching(names, integers))


def planned(text, names="same", integers="same", **options):
    return plan_raw(text, file="raw.yml", options=PlanOptions(**options), matching=Matching(names, integers))


def result(out):
    return load_file(out if out.suffix == ".safetensors" else out / "model.safetensors")
