"""``mergekit convert``: one model as a folder of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit.cli.merge import (
    WRITTEN,
    cached_in,
    carry_out,
    heed_stop,
    in_json,
    in_shards,
    on_threads,
    overwriting,
    quietly,
    streaming,
    unchecked,
    verbosely,
    within_memory,
)
from mergekit.cli.options import Command, option
from mergekit.cli.output import Output

if TYPE_CHECKING:
    from mergekit.checkpoint.hub import Hub

_FALLBACK = "bfloat16"  # of quantised models that do not say what they were before


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("out_path", type=click.Path(path_type=Path))
@verbosely
@quietly
@in_json
@overwriting
@unchecked
@cached_in
@streaming
@on_threads
@within_memory
@option(
    WRITTEN,
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Round all weights to this dtype. Without it they keep theirs; what a GGUF file holds quantised becomes "
    "float16, and other quantised weights get the dtype of config.json.",
)
@in_shards
@click.help_option("-h", "--help")
def convert(
    model: str,
    out_path: Path,
    verbose: int,
    quiet: bool,
    as_json: bool,
    overwrite: bool,
    cache: Path | None,
    stream: bool,
    no_check: bool,
    num_threads: int | None,
    max_memory: int | None,
    dtype: str | None,
    out_shard_size: int,
) -> None:
    """Write MODEL as a folder OUT_PATH of safetensors, as transformers loads it.

    MODEL is a GGUF file, or a folder with GGUF, pickled, quantised or other weights; or any model as recipes name it,
    also with an adapter: BASE+ADAPTER. OUT_PATH appears complete, or not at all.
    """
    from mergekit.checkpoint.hub import Hub
    from mergekit.merging import JobOptions
    from mergekit.plan import PlanOptions

    output = Output(as_json, quiet, verbose > 0)
    with output.failures():
        heed_stop()
        hub = Hub(cache, stream, output.drawing)
        plan = PlanOptions(shard_bytes=out_shard_size, workers=num_threads, max_memory=max_memory, hub=hub)
        options = JobOptions(plan=plan, overwrite=overwrite, model_card=False, room=not no_check)
        carry_out(recipe_text(model, dtype, hub), "<convert>", out_path, options, output)


def recipe_text(model: str, dtype: str | None, hub: Hub) -> str:
    """The recipe that copies a model.

    Parameters:
        model: a path, or a model as recipes name it.
        dtype: of all weights, or None for what they stand for.
        hub: how it is taken from the hub.
    """
    import yaml

    exists = Path(model).expanduser().exists()
    named = {"model": {"path": model}} if exists else model  # a path may have `@` and `+` in its name
    recipe = {"merge_method": "passthrough", "models": [{"model": named}]}
    dtype = dtype or _unquantised(model, exists, hub)
    return yaml.safe_dump({**recipe, "dtype": dtype} if dtype else recipe, sort_keys=False, allow_unicode=True)


def _unquantised(model: str, exists: bool, hub: Hub) -> str | None:
    """The dtype of a quantised model before it was quantised; None for a model that is not."""
    from mergekit.checkpoint.hub import open_model
    from mergekit.errors import CheckpointError
    from mergekit.recipe import Address, ModelRef

    try:
        config = open_model(Address(model) if exists else ModelRef.parse(model).model, hub).config
    except (CheckpointError, ValueError):
        return None  # the merge says what is wrong, and where
    if not config.get("quantization_config"):
        return None
    said = config.get("dtype", config.get("torch_dtype"))
    return said if said in ("bfloat16", "float16", "float32") else _FALLBACK
