"""How many multiples of a number, taken modulo another, fall below a bound: counted without going through them."""

from __future__ import annotations


def floor_sum(count: int, modulus: int, factor: int, offset: int) -> int:
    """The sum of (factor * i + offset) // modulus over i in [0, count), in O(log modulus) divisions.

    The lattice points under a line, counted as in Euclid's algorithm: whole rows are taken off, then the axes change
    places (Graham, Knuth and Patashnik, Concrete Mathematics, section 3.5).

    Args:
        count: Terms.
        modulus: Above 0.
        factor: Not negative.
        offset: Not negative.
    """
    total = 0
    while True:
        total += count * (count - 1) // 2 * (factor // modulus) + count * (offset // modulus)
        factor, offset = factor % modulus, offset % modulus
        rows, rest = divmod(factor * count + offset, modulus)
        if rows == 0:
            return total
        count, offset, modulus, factor = rows, rest, factor, modulus


def below(bound: int, count: int, modulus: int, factor: int, offset: int) -> int:
    """How many i in [0, count) have (factor * i + offset) % modulus < bound.

    Args:
        bound: From 0 to `modulus`.
        count: As for `floor_sum`, like the others.
    """
    # A point at or above the bound steps over a multiple of the modulus when `modulus - bound` is added to it.
    at_or_above = floor_sum(count, modulus, factor, offset + modulus - bound) - floor_sum(
        count, modulus, factor, offset
    )
    return count - at_or_above
