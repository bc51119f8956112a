"""A Ray cluster of two nodes on this machine, which nothing outside can see, and checkpoints to merge on it."""

import os
import sys
import warnings
from pathlib import Path

import pytest

sys.path[:0] = [
    str(Path(__file__).parents[1] / folder)
    for folder in ("merging", "tokenizer", "ggufs", "resume", "surgery", "cluster")
]

from two_nodes import ALERT, NODE, SETTINGS  # noqa: E402


@pytest.fixture(scope="session")
def cluster():
    """Two nodes of a core each; this process is connected to them."""
    before = dict(os.environ)
    os.environ.update(SETTINGS)  # Ray looks at them when it is imported
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # it may have been imported before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": ALERT})
        made.add_node(**NODE)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()
    os.environ.clear()
    os.environ.update(before)
