"""Read every byte of the input models and write the bytes of one: the least that any merge of them has to do.

Nothing is computed, parsed or flushed to the disk. Only the standard library is used, so that start-up costs next to
nothing. Prints one line of JSON: `seconds` without the interpreter's start-up, `bytes` read and written together.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from threading import Thread

UNIT = 1 << 20
"""Bytes that a thread reads from each model, and then writes, at a time."""


def work(starts: Iterator[int], inputs: Sequence[int], output: int, output_size: int, moved: list[int]) -> None:
    """Take units until none is left; record in `moved` how many bytes went through the buffer."""
    buffer = memoryview(bytearray(UNIT))
    for start in starts:
        read = sum(os.preadv(descriptor, [buffer], start) for descriptor in inputs)
        written = os.pwrite(output, buffer[: max(0, output_size - start)], start)
        moved.append(read + written)


def move(out: str, models: Sequence[str], threads: int) -> int:
    """Read all of `models`, write `out` in the size of the first, and return the number of bytes."""
    inputs = [os.open(f"{model}/model.safetensors", os.O_RDONLY) for model in models]
    sizes = [os.fstat(descriptor).st_size for descriptor in inputs]
    output = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.posix_fallocate(output, 0, sizes[0])
    starts, moved = iter(range(0, max(sizes), UNIT)), list[int]()  # threads share the iterator: each unit is taken once
    workers = [Thread(target=work, args=(starts, inputs, output, sizes[0], moved)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if sum(moved) != sum(sizes) + sizes[0]:
        raise SystemExit(f"floor: {sum(moved)} bytes went through, expected {sum(sizes) + sizes[0]}")
    return sum(moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folder with one model.safetensors")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    began = time.perf_counter()
    count = move(options.out, options.models, options.threads)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 4), "bytes": count}))


if __name__ == "__main__":
    main()
