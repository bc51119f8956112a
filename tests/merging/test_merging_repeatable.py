"""The same recipe gives the same bytes in any process, for every method."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

MERGE_ALL = """
import hashlib, json, sys
from pathlib import Path
import mergekit

found = {}
for recipe in sorted(Path("examples/recipes").glob("*.yml")):
    digest = hashlib.sha256()
    for name, tensor in mergekit.iter_merged(recipe):
        digest.update(name.encode() + tensor.tobytes())
    found[recipe.stem] = digest.hexdigest()
json.dump(found, sys.stdout)
"""


def digests(seed):
    """What every example recipe merges to, in a process with this hash seed."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", "-c", MERGE_ALL]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_byte_depends_on_the_hash_seed():
    first = digests("0")
    assert len(first) >= 20
    assert len(set(first.values())) == len(first)
    assert hashlib.sha256().hexdigest() not in first.values()
    assert digests("1") == first
    assert digests("2") == first
