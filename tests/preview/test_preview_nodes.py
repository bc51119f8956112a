"""What a merge costs on several machines."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import llama_config, llama_shapes, recipe, write_hollow

from mergekit.cli.main import commands
from mergekit.plan import plan_merge
from mergekit.preview import Estimate, spread


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A merge of 2 x 26 MB."""
    root = tmp_path_factory.mktemp("hollow")
    config = llama_config(layers=6, width=256, inner=1536, rows=4096)
    for name in "ab":
        write_hollow(root / name, llama_shapes(config), config)
    text = recipe("slerp", [root / "b"], base_model=str(root / "a"), parameters={"t": 0.5}, dtype="bfloat16")
    (root / "merge.yml").write_text(text)
    return root / "merge.yml", plan_merge(text)


def cost(merging, rate):
    return Estimate((), (1, 1), rate, rate, merging, (0.0, 0.0))


@given(st.integers(1, 40))
def test_the_busiest_has_its_share_at_least(planned, nodes):
    _, plan = planned
    found = spread(plan, cost(1.0, 1e9), nodes)
    largest = max(task.read_bytes for task in plan.tasks)
    assert plan.read_bytes / nodes <= found.read <= plan.read_bytes / nodes + largest
    assert found.written * 2 == found.read  # two models in, one out
    assert found.shared.link == found.read + found.written
    assert found.collected.link == plan.write_bytes


def test_one_machine_does_everything(planned):
    _, plan = planned
    found = spread(plan, cost(1.0, 1e9), 1)
    assert (found.read, found.written) == (plan.read_bytes, plan.write_bytes)


def test_the_slowest_part_decides(planned):
    """Seconds by hand: what lasts longest, and the sum of all."""
    _, plan = planned
    megabytes = 1e6
    found = spread(plan, cost(100.0, 8 * megabytes), 1, 4 * megabytes)
    moving = (plan.read_bytes + plan.write_bytes) / (4 * megabytes)
    assert found.shared.seconds == pytest.approx((0.5 + 0.7 * max(100, moving), 0.5 + 2 * (100 + moving)))
    at_home = (plan.read_bytes + plan.write_bytes) / (8 * megabytes)
    there, down = plan.write_bytes / (4 * megabytes), plan.write_bytes / (8 * megabytes)
    longest, total = max(100, at_home, there, down), 100 + at_home + there + down
    assert found.collected.seconds == pytest.approx((0.5 + 0.7 * longest, 0.5 + 2 * total))


def test_what_is_not_known_is_not_guessed(planned):
    found = spread(planned[1], Estimate((), (1, 1), 1e9, None, 1.0, None), 2)
    assert (found.shared.seconds, found.collected.seconds) == (None, None)


def test_the_command_says_it(planned):
    words = ["plan", str(planned[0]), "--nodes", "3", "--disk-rate", "1GB", "--network-rate", "100MB"]
    told = CliRunner().invoke(commands, words).output
    assert "nodes      3 like this machine" in told
    assert "reads 1.00 GB/s, writes 1.00 GB/s, its link carries 100.00 MB/s" in told
    assert "through the busiest link" in told
    found = json.loads(CliRunner().invoke(commands, [*words, "--json"]).output)["plan"]
    assert (found["nodes"]["nodes"], found["nodes"]["network_rate"]) == (3, 100_000_000)
    assert found["estimate"]["read_rate"] == 1_000_000_000
    alone = json.loads(CliRunner().invoke(commands, ["plan", str(planned[0]), "--json"]).output)["plan"]
    assert "nodes" not in alone
