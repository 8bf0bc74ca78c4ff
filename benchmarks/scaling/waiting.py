"""How long the slowest of many takes, where each step's time is drawn anew and independently in every process."""

from __future__ import annotations

from math import erfc, sqrt

EDGE = 10.0
"""Standard deviations beyond which nothing of a normal distribution is left."""
POINTS = 4_000


def normal_excess(processes: int) -> float:
    """Expected largest of so many standard normal numbers.

    E = integral over x > 0 of 1 - F(x)^p, minus the integral over x < 0 of F(x)^p, F being the distribution function
    (David and Nagaraja, Order Statistics, 2003, section 3.1); by the midpoint rule.
    """
    width = EDGE / POINTS
    total = 0.0
    for point in range(POINTS):
        x = (point + 0.5) * width
        total += 1 - _normal_below(x) ** processes - _normal_below(-x) ** processes
    return max(0.0, total * width)  # rounding leaves a trace below zero where there is one process


def _normal_below(x: float) -> float:
    return 0.5 * erfc(-x / sqrt(2))


def exponential_excess(processes: int) -> float:
    """Expected largest of so many exponential numbers of mean 1, less that mean: 1/2 + 1/3 + ... + 1/p (Renyi, 1953).

    Its standard deviation is 1 as well, but its tail is long: a process is rarely late, and then by much.
    """
    return sum(1 / number for number in range(2, processes + 1))


EXCESSES = {"normal": normal_excess, "exponential": exponential_excess}
"""Expected largest less the mean, in standard deviations, by the distribution assumed."""
