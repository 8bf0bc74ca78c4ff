"""Files with some bytes changed, lost, moved or inserted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

HARD_BYTES = (b"\x00", b"\r", b"\xef\xbb\xbf", b'"', b"{", b"}", b"]", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8")
HARD_VALUES = (b"[" * 3000, b"9" * 5000, b"1e999", b"-1", b"NaN", b'"\\ud800"', b"[[1]]", b"{}", b'"."', b"9" * 400)
WORDS = (
    *(b"null", b"[]", b"{}", b"3", b"-1", b".nan", b"${nothing}", b"${", b"???", b"'", b'"', b":", b"- a", b"[a"),
    *(b"a: b", b"&x", b"*x", b"9" * 400, b"!!set", b"---", b"\t"),
)
JSON_VALUE = re.compile(rb'(?<=[:\[,])\s*("[^"]*"|[\d.]+|null)')
TABLE_CELL = re.compile(rb"[^,\n]+")


def flip_bits(content: bytes, draw: Random) -> bytes:
    """1 to 8 bits, anywhere."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncate(content: bytes, draw: Random) -> bytes:
    """Cut off, down to nothing."""
    return content[: draw.randrange(len(content))]


def zero_block(content: bytes, draw: Random) -> bytes:
    """Zeros, as where a disk lost what it had not written yet."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice((16, 512, 4096)))
    return content[:start] + bytes(end - start) + content[end:]


def insert(content: bytes, draw: Random) -> bytes:
    """Bytes that readers stumble over."""
    place = draw.randrange(len(content))
    return content[:place] + draw.choice(HARD_BYTES) + content[place:]


def replace_value(content: bytes, draw: Random) -> bytes:
    """Another value in place of one of JSON's, or of a cell of a table."""
    found = list((JSON_VALUE if b'":' in content else TABLE_CELL).finditer(content))
    if not found:
        return insert(content, draw)
    value = draw.choice(found)
    return content[: value.start()] + draw.choice(HARD_VALUES) + content[value.end() :]


def swap_blocks(content: bytes, draw: Random) -> bytes:
    """Two parts in the other order."""
    first, second, third = sorted(draw.randrange(len(content)) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def delete_lines(content: bytes, draw: Random) -> bytes:
    """Some lines, lost."""
    lines = content.splitlines(keepends=True)
    start = draw.randrange(len(lines))
    return b"".join(lines[:start] + lines[start + draw.randint(1, 3) :])


def repeat_lines(content: bytes, draw: Random) -> bytes:
    """Some lines, twice."""
    lines = content.splitlines(keepends=True)
    start, count = draw.randrange(len(lines)), draw.randint(1, 3)
    return b"".join(lines[: start + count] + lines[start:])


def change_line(content: bytes, draw: Random) -> bytes:
    """A line of a text that somebody edited: indented, cut, or with a word that means something to YAML."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    line = lines[at]
    key, colon, _ = line.partition(b":")
    cut = draw.randrange(len(line) + 1)
    word = draw.choice(WORDS)
    lines[at] = draw.choice(
        [b"  " + line, line.lstrip(), line[:cut], line[:cut] + word + line[cut:], key + colon + b" " + word]
    )
    return b"\n".join(lines)


KINDS = (flip_bits, truncate, zero_block, insert, replace_value, swap_blocks, delete_lines, repeat_lines, change_line)


def damaged(name: str, content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the result) of `count` damages to a file of this name; none leaves it as it was."""
    draw = Random(f"{seed}-{name}")
    first = draw.randrange(len(KINDS))
    for number in range(count):
        kind = KINDS[(first + number) % len(KINDS)]
        changed = kind(content, draw)
        while changed == content:
            changed = kind(content, draw)
        yield f"{kind.__name__} {number}", changed
