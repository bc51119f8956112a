"""How a merge is carried out: the options of ``mergekit yaml``, for Python programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, final

from mergekit.api.notices import warn
from mergekit.api.numbers import size, whole_number
from mergekit.errors import UnsupportedError

if TYPE_CHECKING:
    from mergekit import merging
    from mergekit.plan import PlanOptions

_WITHOUT_EFFECT = {
    "lora_merge_dtype": "adapters are computed with in float32",
}
"""Options that do nothing although one would see a difference elsewhere, and why."""

_NUMBERS: Mapping[str, Callable[[str, Any], int]] = {
    "out_shard_size": size,
    "random_seed": whole_number,
    "num_threads": partial(whole_number, least=1),
    "max_memory": partial(size, least=1),
}
"""What makes numbers of what is given for options."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How a merge is carried out; every option is called like its flag of ``mergekit yaml``.

    Parameters:
        out_shard_size: most bytes of tensors in one output file, or text such as "5GB"; 0 for a single file.
        copy_tokenizer: take over the tokenizer's files.
        write_model_card: write README.md.
        experts: "as-stored", or "fused" to merge and write the matrices of all experts of a layer as one tensor each.
        overwrite: replace an output folder that holds a model.
        restart: begin anew, whatever an interrupted merge has left; else it continues.
        no_check: begin even if there seems to be too little room on the disk.
        strict: treat warnings about the recipe as errors.
        allow_code: run the Python file that `merge_method` names.
        unsafe_truncate_embeddings: cut vocabularies of unequal size to the rows that all models have.
        random_seed: of random methods; None is 0.
        device: compute with torch on "cpu", "cuda", "cuda:N", "mps", "xpu" or "auto", or on several that are alike,
            separated by commas; None or "kernels" for compiled kernels on the CPU.
        cuda: the same as device "cuda".
        multi_gpu: compute on all devices of that kind that are alike; without a device, on all accelerators.
        read_to_gpu: keep what fits of a tensor on the device between the sweeps over it.
        gpu_rich: the same as `cuda`, `multi_gpu` and `read_to_gpu`.
        ray: merge on the machines of a Ray cluster: "auto" for that of this machine, "HOST:PORT", or "local" for a new
            one of this machine alone; `num_threads` and `max_memory` are those of each of its processes.
        ray_collect: have them send what they have merged; for machines without shared storage. Alone it means that
            `ray` is "auto".
        num_threads: at least 1; None for one per core.
        max_memory: bytes to stay within, or text such as "8GB"; None for a quarter of the machine's memory.
        safe_serialization: must stay true: pickles are not written.
        transformers_cache: folder where downloads from the hub are kept; None for that of huggingface_hub.
        stream: leave weights on the hub, and read only what is needed of them while merging.
        lora_merge_dtype: without effect; a warning says so.
        allow_crimes, async_write, clone_tensors, lazy_unpickle, lora_merge_cache, low_cpu_memory, quiet,
            trust_remote_code, verbosity, write_threads: accepted for programs written for others; there is nothing
            for them to change here.

    Raises:
        UnsupportedError: `safe_serialization` is false.
        ValueError: `experts` is something else, a number is out of its bounds, or text is no size.
        TypeError: what must be a number is none.

    Example:
        >>> MergeOptions(lazy_unpickle=True, num_threads=4, max_memory="1.5GB").max_memory
        1500000000
    """

    out_shard_size: int | str = 5_000_000_000
    copy_tokenizer: bool = True
    write_model_card: bool = True
    experts: Literal["as-stored", "fused"] = "as-stored"
    overwrite: bool = False
    restart: bool = False
    no_check: bool = False
    strict: bool = False
    allow_code: bool = False
    unsafe_truncate_embeddings: bool = False
    random_seed: int | None = None
    device: str | None = None
    cuda: bool = False
    gpu_rich: bool = False
    ray: str | None = None
    ray_collect: bool = False
    num_threads: int | None = None
    max_memory: int | str | None = None
    safe_serialization: bool = True
    transformers_cache: str | PathLike[str] | None = None
    stream: bool = False
    lora_merge_dtype: str | None = None
    multi_gpu: bool = False
    allow_crimes: bool = False
    async_write: bool = False
    clone_tensors: bool = False
    lazy_unpickle: bool = False
    lora_merge_cache: str | None = None
    low_cpu_memory: bool = False
    quiet: bool = False
    read_to_gpu: bool = False
    trust_remote_code: bool = False
    verbosity: int = 0
    write_threads: int = 1

    def __post_init__(self) -> None:
        if not self.safe_serialization:
            raise UnsupportedError("pickles are not written, only safetensors", hint="safe_serialization=True")
        if self.experts not in ("as-stored", "fused"):
            raise ValueError(f"unknown way to write experts {self.experts!r}: expected 'as-stored' or 'fused'")
        for option in fields(self):
            given = getattr(self, option.name)
            if option.name in _NUMBERS and given is not option.default:
                object.__setattr__(self, option.name, _NUMBERS[option.name](option.name, given))
            if option.name in _WITHOUT_EFFECT and given != option.default:
                warn(f"`{option.name}` has no effect: {_WITHOUT_EFFECT[option.name]}")


def planning(options: MergeOptions, bars: bool = False) -> PlanOptions:
    """What concerns the plan; with `bars` downloads are shown as they go."""
    from mergekit.checkpoint.hub import Hub
    from mergekit.plan import PlanOptions

    return PlanOptions(
        shard_bytes=cast(int, options.out_shard_size),
        copy_tokenizer=options.copy_tokenizer,
        crop_vocabulary=options.unsafe_truncate_embeddings,
        fuse_experts=options.experts == "fused",
        strict=options.strict,
        allow_code=options.allow_code,
        seed=options.random_seed or 0,
        workers=options.num_threads,
        max_memory=cast("int | None", options.max_memory),
        hub=Hub(Path(options.transformers_cache) if options.transformers_cache else None, options.stream, bars),
    )


def device(options: MergeOptions) -> str | None:
    """Where to compute, as :func:`mergekit.engine.open_device` takes it; None for compiled kernels on the CPU."""
    named = options.device or ("cuda" if options.cuda or options.gpu_rich else None)
    kind = (named or "auto").partition(":")[0]
    if not (options.multi_gpu or options.gpu_rich) or "," in (named or "") or kind in ("kernels", "cpu", "mps"):
        return named
    return f"{kind}:*"


def first_device(named: str | None) -> str | None:
    """Where a network runs, which takes one device: the first of several, as torch names it."""
    return None if named in (None, "kernels") else named.partition(",")[0].removesuffix(":*")


def carrying_out(options: MergeOptions, bars: bool = False) -> merging.JobOptions:
    """What concerns the whole job; with `bars` downloads are shown as they go."""
    from mergekit import merging

    return merging.JobOptions(
        plan=planning(options, bars),
        device=device(options),
        keeping=options.read_to_gpu or options.gpu_rich,
        overwrite=options.overwrite,
        restart=options.restart,
        model_card=options.write_model_card,
        room=not options.no_check,
        ray=options.ray or ("auto" if options.ray_collect else None),
        collect=options.ray_collect,
    )
