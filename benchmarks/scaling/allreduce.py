"""Seconds of collectives in the alpha-beta model: a message of n bytes takes latency + n / bandwidth.

The time of the additions is left out: a processor adds float32 numbers far faster than a network brings them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

QUERY_WIDTH = 768
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Link:
    """What a message goes through.

    Attributes:
        latency: Seconds until the first byte is there.
        bandwidth: Bytes/s, in each direction.
    """

    latency: float
    bandwidth: float


def projection_parameters(width: int) -> int:
    """Weights and biases of the projection to a language model of this width."""
    return QUERY_WIDTH * width + width


def ring_seconds(processes: int, size: float, link: Link) -> float:
    """All-reduce by reduce-scatter and all-gather around a ring, as gloo does it and NCCL for large sizes.

    2 (p - 1) messages of n / p bytes, one after the other (Thakur, Rabenseifner and Gropp, "Optimization of Collective
    Communication Operations in MPICH", 2005, sections 4.1 and 4.5; Patarasuk and Yuan, "Bandwidth Optimal All-reduce
    Algorithms for Clusters of Workstations", 2009).

    Args:
        processes: p.
        size: n, bytes in each process.
        link: Between neighbours; the slowest of them.
    """
    return 2 * (processes - 1) * (link.latency + size / processes / link.bandwidth)


def tree_seconds(processes: int, size: float, link: Link) -> float:
    """All-reduce up and down two binary trees, each with half the data, as NCCL does it between many nodes.

    2 ceil(log2 p) latencies, and 2 n bytes in and out of the busiest process (Sanders, Speck and Traeff, "Two-tree
    algorithms for full bandwidth broadcast, reduction and scan", 2009; Jeaugey, "Massively Scale Your Deep Learning
    Training with NCCL 2.4", 2019). Messages go in segments; the time until the trees are filled with them is left out.

    Args:
        processes: p.
        size: n, bytes in each process.
        link: Of each process.
    """
    if processes == 1:
        return 0.0
    return 2 * ceil(log2(processes)) * link.latency + 2 * size / link.bandwidth
