from __future__ import annotations

from random import Random

import pytest

from minigpt4.datasets.sampler import below, floor_sum

CIRCLE = 1 << 64


def test_the_sum_of_quotients() -> None:
    draw = Random("sums")
    for _ in range(500):
        count, modulus = draw.randrange(40), draw.randrange(1, 50)
        factor, offset = draw.randrange(120), draw.randrange(120)
        expected = sum((factor * i + offset) // modulus for i in range(count))
        assert floor_sum(count, modulus, factor, offset) == expected


@pytest.mark.parametrize("modulus", [1, 7, 64, CIRCLE])
def test_points_below_a_bound(modulus: int) -> None:
    draw = Random(f"points-{modulus}")
    for _ in range(200):
        count, factor, offset = draw.randrange(60), draw.randrange(modulus), draw.randrange(modulus)
        points = [(factor * i + offset) % modulus for i in range(count)]
        for bound in {0, 1, modulus, draw.randrange(modulus + 1), *points[:2]}:
            assert below(bound, count, modulus, factor, offset) == sum(point < bound for point in points)
