"""What a merge will cost on several machines: bytes of the busiest one, and how long all of them will take."""

from __future__ import annotations

from dataclasses import dataclass

from mergekit.engine.batches import Batch, batches, dealt
from mergekit.plan import Plan
from mergekit.preview.costs import Estimate, guess

NETWORK_RATE = 1.25e9
"""Bytes per second of a network of 10 Gbit/s."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to bring the output together.

    Parameters:
        link: bytes that go through the busiest link: of a node, or of the machine that collects.
        seconds: from the least to the most, a rough guess; None if something is not known.
    """

    link: int
    seconds: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Spread:
    """What a merge will cost on several machines of one kind.

    Parameters:
        nodes: how many machines.
        batches: in how many parts the merge is sent to them.
        read, written: bytes of the machine that has most to do.
        network_rate: bytes per second of a machine's link.
        shared: models and output are on storage that all machines share.
        collected: every machine has the models, and sends what it has merged to one of them.
    """

    nodes: int
    batches: int
    read: int
    written: int
    network_rate: float
    shared: Way
    collected: Way


def spread(plan: Plan, cost: Estimate, nodes: int, network_rate: float = NETWORK_RATE) -> Spread:
    """Share the tasks of a plan among machines that are like this one, and add up what the busiest one does.

    Parameters:
        plan: the merge.
        cost: what it costs on this machine alone; its rates are those of the storage as each machine sees it.
        nodes: how many machines.
        network_rate: bytes per second of a machine's link.
    """
    found = batches(((index, task.read_bytes) for index, task in enumerate(plan.tasks)), nodes)
    busiest = dealt(found, nodes)[0]
    read, written = sum(batch.nbytes for batch in busiest), _written(plan, busiest)
    share = read / max(1, plan.read_bytes)
    return Spread(
        nodes,
        len(found),
        read,
        written,
        network_rate,
        Way(read + written, _shared(cost, share, read, written, network_rate)),
        Way(plan.write_bytes, _collected(cost, share, read, written, plan.write_bytes, network_rate)),
    )


def _written(plan: Plan, own: list[Batch]) -> int:
    return sum(plan.tasks[index].out.nbytes for batch in own for index in batch.tasks)


def _shared(cost: Estimate, share: float, read: int, written: int, network: float) -> tuple[float, float] | None:
    """Everything that is read and written goes through the link of a node."""
    if cost.merging is None or not cost.read_rate or not cost.write_rate:
        return None
    moving = read / min(cost.read_rate, network) + written / min(cost.write_rate, network)
    return guess([cost.merging * share, moving])


def _collected(
    cost: Estimate, share: float, read: int, written: int, total: int, network: float
) -> tuple[float, float] | None:
    """Nodes read what they have, and write for the time being; then all goes through one link and to one disk."""
    if cost.merging is None or not cost.read_rate or not cost.write_rate:
        return None
    moving = read / cost.read_rate + written / cost.write_rate
    return guess([cost.merging * share, moving, total / network, total / cost.write_rate])
