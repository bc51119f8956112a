"""Peak memory of merges within a budget, next to what was planned: every method, and every kind of source.

Models are made of the same numbers again and again, with holes between them, so that they take little room on the disk
or in /dev/shm; the outputs take all of theirs, one at a time::

    python benchmarks/memory.py                                  # 512 MB over models of 4 GB, needs some 6 GB
    python benchmarks/memory.py --gigabytes 0.4 --budget 400MB --only linear,ties
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
MB = 1_000_000
ROWS = 32000
BLOCK = 1 << 20  # bytes of numbers
GAP = 15 << 20  # bytes of nothing between them

MERGE = """
import re, sys
from pathlib import Path
from mergekit.merging import JobOptions, Silent, merge_recipe
from mergekit.plan import PlanOptions

class Told(Silent):
    def planned(self, plan):
        print(plan.memory.peak, plan.memory.workers)

options = PlanOptions(workers=2, max_memory=int(sys.argv[3]), allow_code=True)
job = JobOptions(options, model_card=False, overwrite=True)
merge_recipe(Path(sys.argv[1]).read_text(), Path(sys.argv[2]), file=sys.argv[1], options=job, progress=Told())
print("numba" in sys.modules, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10)
"""

OWN = '''
import numpy as np
from mergekit.methods import merge_method

@merge_method(title="Median", base="ignored")
def median(models):
    """Of every entry."""
    return np.median(models, axis=0)

@merge_method(title="Doubles")
def doubles(base, models, *, weight: float = 0.3):
    """In float64."""
    wide = models.astype(np.float64)
    return base + weight * (wide - base).mean(axis=0)

@merge_method(title="Whole", base="ignored", whole=True)
def whole(models):
    """All of a tensor at once."""
    return models.mean(axis=0)

@merge_method(title="Torch", base="ignored", arrays="torch")
def with_torch(models):
    """With torch."""
    return models.mean(dim=0)
'''


@dataclass(frozen=True, slots=True)
class Case:
    """A merge.

    Parameters:
        name: for the table.
        method: as recipes have it.
        models: folders, below that of the models.
        base: the same.
        parameters: of the method.
        others: more keys of the recipe.
    """

    name: str
    method: str
    models: tuple[str, ...] = ("a", "b", "c")
    base: str | None = "base"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, root: Path) -> str:
        """As JSON, which is YAML."""

        def located(name: str) -> str:
            first, *adapters = name.split("+")
            return "+".join([str(root / first), *(str(root / each) for each in adapters)])

        recipe: dict[str, Any] = {"merge_method": self.method, "models": [{"model": located(m)} for m in self.models]}
        if self.base:
            recipe["base_model"] = located(self.base)
        return json.dumps({**recipe, "parameters": dict(self.parameters), **self.others})


DENSE = {"density": 0.5, "weight": 0.4}
CASES = (
    Case("linear", "linear", base=None, parameters={"weight": 0.3}),
    Case("slerp", "slerp", ("base", "a"), parameters={"t": 0.4}),
    Case("nuslerp", "nuslerp", ("a", "b"), parameters={"weight": 0.5}),
    Case("nuslerp columns", "nuslerp", ("a", "b"), parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    Case("nuslerp rows", "nuslerp", ("a", "b"), parameters={"nuslerp_flatten": False}),
    Case("multislerp", "multislerp", parameters={"weight": 0.4}),
    Case("karcher", "karcher", base=None),
    Case("karcher of 9", "karcher", tuple(letter + number for number in ("", "1", "2") for letter in "abc"), base=None),
    Case("model_stock", "model_stock"),
    Case("task_arithmetic", "task_arithmetic", parameters={"weight": 0.4}),
    Case("ties", "ties", parameters=DENSE),
    Case("dare_linear", "dare_linear", parameters=DENSE),
    Case("dare_ties", "dare_ties", parameters=DENSE),
    Case("breadcrumbs", "breadcrumbs", parameters={**DENSE, "gamma": 0.05}),
    Case("breadcrumbs_ties", "breadcrumbs_ties", parameters={**DENSE, "gamma": 0.05}),
    Case("della", "della", parameters={**DENSE, "epsilon": 0.1}),
    Case("della_linear", "della_linear", parameters={**DENSE, "epsilon": 0.1}),
    Case("della keeping norms", "della", parameters={**DENSE, "epsilon": 0.1, "rescale_norm": "l2"}),
    Case("sce", "sce", parameters={"select_topk": 0.5}),
    Case("ram", "ram"),
    Case("ramplus_tl", "ramplus_tl"),
    Case("nearswap", "nearswap", ("a",), parameters={"t": 0.001}),
    Case("arcee_fusion", "arcee_fusion", ("a",)),
    Case("passthrough", "passthrough", ("a",), base=None),
    Case("custom", "OWN:median", base=None),
    Case("custom in float64", "OWN:doubles"),
    Case("custom on whole tensors", "OWN:whole", base=None),
    Case("custom with torch", "OWN:with_torch", base=None),
    Case("to float32", "ties", parameters=DENSE, others={"out_dtype": "float32"}),
    Case("to float64", "linear", base=None, parameters={"weight": 0.3}, others={"out_dtype": "float64"}),
    Case("float32 and bfloat16", "ties", ("a", "wide"), parameters=DENSE),
    Case("adapters", "ties", ("a+lora", "b+lora", "c"), parameters=DENSE),
    Case("adapters (DoRA)", "linear", ("a+dora", "b"), base=None, parameters={"weight": 0.3}),
    Case("vocabularies", "ties", ("va", "vb"), "vbase", parameters=DENSE, others={"tokenizer": {"source": "union"}}),
    Case("GGUF", "ties", ("gguf", "b"), parameters=DENSE),
    Case("fp8", "ties", ("fp8", "b"), parameters=DENSE),
    Case("bitsandbytes", "ties", ("nf4", "b"), parameters=DENSE),
    Case("pickles", "ties", ("pickled", "b"), parameters=DENSE),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of about so many bytes in bfloat16."""

    width: int
    inner: int
    layers: int

    @classmethod
    def of(cls, nbytes: float) -> Shape:
        """Of the width of small or of larger models."""
        width = 4096 if nbytes >= 2e9 else 2048
        inner = 11008 if width == 4096 else 5632
        layer = 2 * (4 * width**2 + 3 * width * inner)
        return cls(width, inner, max(1, round((nbytes - 4 * ROWS * width) / layer)))

    @property
    def config(self) -> dict[str, Any]:
        """Contents of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // 128,
            "num_key_value_heads": self.width // 128,
            "vocab_size": ROWS,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def linear(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The matrices of the layers."""
        square, wide = (self.width, self.width), (self.inner, self.width)
        parts = {f"self_attn.{name}_proj": square for name in "qkvo"} | {"mlp.gate_proj": wide, "mlp.up_proj": wide}
        for layer in range(self.layers):
            for name, shape in {**parts, "mlp.down_proj": wide[::-1]}.items():
                yield f"model.layers.{layer}.{name}.weight", shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """All tensors."""
        norms = [
            f"model.layers.{layer}.{name}"
            for layer in range(self.layers)
            for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
        ]
        ends = {"model.embed_tokens.weight": (ROWS, self.width), "lm_head.weight": (ROWS, self.width)}
        return {**ends, **dict(self.linear()), **dict.fromkeys([*norms, "model.norm.weight"], (self.width,))}


SIZES = {"F32": 4, "BF16": 2, "U8": 1, "F8_E4M3": 1}
Specs = Mapping[str, tuple[str, tuple[int, ...]]]


def numbers(seed: int, dtype: str) -> bytes:
    """A block of numbers as a trained model has them."""
    draw = np.random.default_rng(seed)
    if dtype in ("U8", "F8_E4M3"):
        return (draw.integers(0, 0x70, BLOCK, dtype=np.uint8)).tobytes()
    near = np.random.default_rng(0).normal(0, 0.05, BLOCK // 2) + draw.normal(0, 0.005, BLOCK // 2)
    wide = near.astype(np.float32)
    return wide.tobytes()[:BLOCK] if dtype == "F32" else (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def sprinkle(file: Path, start: int, block: bytes, gap: int = GAP) -> None:
    """Put a block here and there into a file."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        for place in range(start, size, BLOCK + gap):
            stream.seek(place)
            stream.write(block[: size - place])


def write_model(folder: Path, specs: Specs, config: Mapping[str, Any] | None, seed: int, **contents: bytes) -> None:
    """A model folder, or an adapter's; tensors with contents of their own come last."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    entries, end = {}, 0
    for name, (dtype, shape) in specs.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file = folder / ("model.safetensors" if config is not None else "adapter_model.safetensors")
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    kinds = {dtype for dtype, _ in specs.values()}
    # Of tensors of several kinds each has to make numbers of all bytes.
    kind = "U8" if "F8_E4M3" in kinds else kinds.pop() if len(kinds) == 1 else "BF16"
    sprinkle(file, 8 + len(header), numbers(seed, kind), 0 if config is None else GAP)
    with file.open("r+b") as stream:
        for name, content in contents.items():
            stream.seek(8 + len(header) + entries[name]["data_offsets"][0])
            stream.write(content)


def write_fp8(folder: Path, shape: Shape) -> None:
    """Matrices in FP8 with a factor for each."""
    linear = dict(shape.linear())
    specs: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("F8_E4M3" if name in linear else "BF16", size) for name, size in shape.tensors().items()
    }
    specs = dict(sorted(specs.items(), key=lambda entry: entry[1][0] == "BF16"))
    scales = {f"{name}_scale": ("F32", (size[0], 1)) for name, size in linear.items()}
    config = {**shape.config, "quantization_config": {"quant_method": "fbgemm_fp8"}}
    write_model(folder, {**specs, **scales}, config, 5)


def write_nf4(folder: Path, shape: Shape) -> None:
    """Matrices in blocks of 64 codes of 4 bits."""
    linear = dict(shape.linear())
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    contents = {}
    for name, size in shape.tensors().items():
        if name not in linear:
            specs[name] = ("BF16", size)
            continue
        count = math.prod(size)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(size)}
        text = json.dumps(state).encode()
        own = f"{name}.quant_state.bitsandbytes__nf4"
        specs |= {
            name: ("U8", (count // 2, 1)),
            f"{name}.absmax": ("F32", (count // 64,)),
            f"{name}.quant_map": ("F32", (16,)),
            own: ("U8", (len(text),)),
        }
        contents[own] = text
        contents[f"{name}.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32).tobytes()
    # Numbers of one kind after those of another would be read as something else: larger elements first.
    specs = dict(sorted(specs.items(), key=lambda entry: -SIZES[entry[1][0]]))
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    write_model(folder, specs, {**shape.config, "quantization_config": settings}, 6, **contents)


def write_gguf(folder: Path, shape: Shape) -> None:
    """All matrices as Q4_K and Q6_K."""
    import gguf

    folder.mkdir(parents=True)
    file = folder / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.width // 128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(ROWS)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    ends = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    for name, size in shape.tensors().items():
        stem = name.removesuffix(".weight")
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        own = f"blk.{found[1]}.{names[found[2]]}" if found else ends[stem]
        kind = (
            gguf.GGMLQuantizationType.F32
            if len(size) == 1
            else (
                gguf.GGMLQuantizationType.Q6_K
                if "down" in name or "lm_head" in name
                else gguf.GGMLQuantizationType.Q4_K
            )
        )
        entries, nbytes = gguf.GGML_QUANT_SIZES[kind]
        total = math.prod(size) // entries * nbytes
        writer.add_tensor_info(f"{own}.weight", size, np.dtype(np.float32), total, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-file.stat().st_size // 32) * 32
    total = sum(-(-info.nbytes // 32) * 32 for infos in writer.tensors for info in infos.values())
    os.truncate(file, start + total)


def write_pickled(folder: Path, shape: Shape) -> None:
    """Every tensor a few numbers, repeated by strides."""
    import torch

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config))
    line = {size: torch.randn(size).mul(0.05).bfloat16() for size in (shape.width, shape.inner)}
    state = {name: line[size[-1]].expand(size) for name, size in shape.tensors().items()}
    torch.save(state, folder / "pytorch_model.bin")


def write_adapter(folder: Path, shape: Shape, dora: bool) -> None:
    """Of rank 64, for every matrix."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (rows, columns) in shape.linear():
        stem = "base_model.model." + name.removesuffix(".weight")
        specs |= {f"{stem}.lora_A.weight": ("F32", (64, columns)), f"{stem}.lora_B.weight": ("F32", (rows, 64))}
        if dora:
            specs[f"{stem}.lora_magnitude_vector"] = ("F32", (rows,))
    write_model(folder, specs, None, 7)
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "use_dora": dora, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_tokens(folder: Path, model: Path, seed: int) -> None:
    """The same model with a vocabulary of its own."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (folder / name).hardlink_to(model / name)
    order = np.random.default_rng(seed).permutation(ROWS + ROWS // 4)[:ROWS]
    vocabulary = {f"token{number}": place for place, number in enumerate(order.tolist())}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "post_processor": None,
        "decoder": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "token0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_all(root: Path, shape: Shape) -> None:
    """Everything that cases name."""
    plain: Specs = {name: ("BF16", size) for name, size in shape.tensors().items()}
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_model(root / name, plain, shape.config, seed)
        write_tokens(root / f"v{name}", root / name, seed)
    for name in ("a1", "b1", "c1", "a2", "b2", "c2"):
        (root / name).symlink_to(root / name[0])
    write_model(root / "wide", {name: ("F32", size) for name, size in shape.tensors().items()}, shape.config, 4)
    write_adapter(root / "lora", shape, False)
    write_adapter(root / "dora", shape, True)
    write_fp8(root / "fp8", shape)
    write_nf4(root / "nf4", shape)
    write_gguf(root / "gguf", shape)
    write_pickled(root / "pickled", shape)
    (root / "own.py").write_text(OWN)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a case: bytes planned and taken, or what it said."""

    case: Case
    planned: int = 0
    workers: int = 0
    peak: int = 0
    compiled: bool = False
    refused: str = ""

    def row(self, budget: int) -> list[str]:
        """For the table."""
        if self.refused:
            found = re.search(r"at least (\d+) MB", self.refused)
            return [self.case.name, "-", "-", "-", f"refused: {found[1]} MB would do" if found else self.refused]
        verdict = "within" if self.peak <= budget else "BEYOND"
        return [self.case.name, f"{self.planned / MB:.0f}", str(self.workers), f"{self.peak / MB:.0f}", verdict]


def measure(case: Case, root: Path, budget: int) -> Measured:
    """Carry a merge out in a process of its own."""
    file, out = root / "recipe.yml", root / "out"
    file.write_text(case.recipe(root).replace('"OWN:', f'"{root / "own.py"}:'))
    call = [sys.executable, "-c", MERGE, str(file), str(out), str(budget)]
    done = subprocess.run(
        call, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=False
    )
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()
        return Measured(case, refused=" ".join(last[-4:]) if "BudgetError" in done.stderr else "\n".join(last[-8:]))
    planned, workers, compiled, peak = done.stdout.split()
    return Measured(case, int(planned), int(workers), int(peak), compiled == "True")


def table(rows: list[list[str]]) -> str:
    """Columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    """Measure, print a table or JSON, and fail if a merge took more than it might."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of each model")
    parser.add_argument("--budget", default="512MB", help="such as 512MB")
    parser.add_argument("--only", default="", help="names of cases, with commas")
    parser.add_argument("--folder", type=Path, help="for the models; /dev/shm if not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    budget = int(options.budget.removesuffix("MB")) * MB
    wanted = [case for case in CASES if not options.only or case.name in options.only.split(",")]
    place = options.folder or (Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="mergekit-memory-", dir=place) as folder:
        root = Path(folder)
        write_all(root, Shape.of(options.gigabytes * 1e9))
        found = []
        for case in wanted:
            found.append(measure(case, root, budget))
            print(*found[-1].row(budget), sep="  ", file=sys.stderr, flush=True)
    if options.json:
        print(
            json.dumps(
                [
                    {
                        "case": each.case.name,
                        "planned": each.planned,
                        "peak": each.peak,
                        "compiled": each.compiled,
                        "refused": each.refused,
                    }
                    for each in found
                ]
            )
        )
    else:
        head = ["merge", "planned MB", "workers", "peak MB", f"{options.budget}, models of {options.gigabytes:g} GB"]
        print(table([head, *(each.row(budget) for each in found)]))
    return int(any(each.peak > budget for each in found))


if __name__ == "__main__":
    sys.exit(main())
