"""Damaged files of every format: records, or errors that say what is wrong, and never another exception."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.schema import DatasetConfig
from minigpt4.datasets.builders import read_rows
from minigpt4.datasets.shards.dataset import ShardRecords
from minigpt4.datasets.shards.index import FOLDER, open_index
from tests.datasets.shards.conftest import encoded_image, write_shard

DAMAGES = 60
"""Damaged versions of each file."""
CAPTIONS = ["a dog, and a cat", "zwei Katzen \u2603", "\U0001f600 three"]

HARD_BYTES = (b"\x00", b"\r", b"\xef\xbb\xbf", b'"', b"{", b"}", b"]", b"\xff")
HARD_VALUES = (b"[" * 3000, b"9" * 5000, b"1e999", b"-1", b"NaN", b'"\\ud800"', b"[[1]]", b"{}", b'"."', b"9" * 400)


def flip_bits(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.randint(1, 8)):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def insert(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content))
    return content[:place] + random.choice(HARD_BYTES) + content[place:]


def replace_value(content: bytes, random: Random) -> bytes:
    """Another value in place of one of JSON's, or of a cell of a CSV."""
    pattern = rb'(?<=[:\[,])\s*("[^"]*"|[\d.]+|null)' if b'":' in content else rb"[^,\n]+"
    value = random.choice(list(re.finditer(pattern, content)))
    return content[: value.start()] + random.choice(HARD_VALUES) + content[value.end() :]


def swap_blocks(content: bytes, random: Random) -> bytes:
    first, second, third = sorted(random.randrange(len(content)) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def delete_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    start = random.randrange(len(lines))
    return b"".join(lines[:start] + lines[start + random.randint(1, 3) :])


KINDS = (flip_bits, truncate, insert, replace_value, swap_blocks, delete_lines)


def damaged(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """(what was done, the result) of each damage."""
    for number in range(DAMAGES):
        kind = KINDS[number % len(KINDS)]
        yield f"{kind.__name__} {number}", kind(content, Random(f"{name}-{number}"))


def rows(count: int) -> Iterator[dict[str, object]]:
    for number in range(count):
        yield {
            "image": f"{number}.png",
            "id": number,
            "answer": CAPTIONS[number % 3],
            "split": "val" if number else None,
        }


def coco() -> dict[str, object]:
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 100.5} for number in range(3)]
    boxes = [{"image_id": number % 3, "category_id": number % 2, "bbox": [1, 2.5, 30, 40]} for number in range(6)]
    return {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]}


FILES: dict[str, tuple[str, str, Callable[[], str]]] = {
    "jsonl": ("jsonl", "a.jsonl", lambda: "".join(json.dumps(row) + "\n" for row in rows(8))),
    "json list": ("jsonl", "a.json", lambda: json.dumps(list(rows(8)), indent=1, ensure_ascii=False)),
    "csv": (
        "csv",
        "a.csv",
        lambda: "image,captions,split\n" + "".join(f'{n}.png,"[""one"", ""two, \u00e9""]",train\n' for n in range(8)),
    ),
    "folder": ("folder", "0.txt", lambda: "\n".join(CAPTIONS) + "\n"),
    "flickr30k": (
        "flickr30k",
        "a.json",
        lambda: json.dumps(
            [
                {
                    "image_id": f"{n}",
                    "captions": CAPTIONS,
                    "filename": f"{n}.png",
                    "grounded_caption": " ".join(CAPTIONS),
                }
                for n in range(4)
            ],
            indent=1,
        ),
    ),
    "cc_sbu_align": (
        "cc_sbu_align",
        "a.json",
        lambda: json.dumps(
            {"annotations": [{"image_id": str(n), "caption": CAPTIONS[n % 3]} for n in range(8)]}, indent=1
        ),
    ),
    "coco_boxes": ("coco_boxes", "a.json", lambda: json.dumps(coco(), indent=0)),
    "table_triples": ("table_triples", "0.csv", lambda: 'year,"sold, net",left\n2023,1,2\n2024,"3 \u20ac",\n'),
}
"""Reader, name of the file that is damaged, and its valid content."""


def unexpected(read: Callable[[], object]) -> str | None:
    """The traceback of an exception that is no error of the project's."""
    try:
        read()
    except MiniGPT4Error as error:
        assert str(error)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


@pytest.mark.parametrize("name", FILES)
def test_readers(name: str, tmp_path: Path) -> None:
    reader, file, valid = FILES[name]
    content = valid().encode()
    if reader in ("folder", "table_triples"):
        (tmp_path / "0.png").write_bytes(encoded_image(0))
    cfg = DatasetConfig(
        reader=reader,
        annotations=str(tmp_path if (tmp_path / "0.png").exists() else tmp_path / file),
        val_fraction=0.5,
    )

    def read() -> list[str]:
        """Every row, also as it is shown."""
        found = list(read_rows("mine", cfg))
        assert len(found) <= 2 * len(content)
        return [str(row).encode(errors="replace").decode() for row in found]

    (tmp_path / file).write_bytes(content)
    assert read()
    problems = {}
    for damage, changed in damaged(name, content):
        (tmp_path / file).write_bytes(changed)
        problem = unexpected(read)
        if problem is not None:
            problems[damage] = problem
    assert not problems, "\n".join(f"{damage}: {problem}" for damage, problem in problems.items())


SAMPLES = [
    (f"{number:05d}", {"png": encoded_image(number), "json": json.dumps({"caption": CAPTIONS[number % 3]}).encode()})
    for number in range(4)
]


def read_shard(path: Path) -> list[object]:
    """Every sample of a shard by its index, or why it cannot be read."""
    index = open_index([path], None)
    records = ShardRecords(index)
    found: list[object] = [*index.problems().values()]
    for number in range(len(records)):
        try:
            found += [records.sample(number), records[number]]
        except MiniGPT4Error as error:
            found.append(str(error))
    return found


def test_shards(tmp_path: Path) -> None:
    valid = write_shard(tmp_path / "valid.tar", SAMPLES).read_bytes()
    assert len(read_shard(tmp_path / "valid.tar")) == 8
    problems = {}
    for number, (damage, changed) in enumerate(damaged("tar", valid)):
        path = tmp_path / str(number) / "a.tar"
        path.parent.mkdir()
        path.write_bytes(changed)
        problem = unexpected(lambda path=path: read_shard(path))  # type: ignore[misc]
        if problem is not None:
            problems[damage] = problem
    assert not problems, "\n".join(f"{damage}: {problem}" for damage, problem in problems.items())


@pytest.mark.parametrize("pattern", ["shards.json", "*.npy"])
def test_indexes_of_shards(pattern: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", SAMPLES)
    read_shard(path)
    (file,) = (tmp_path / FOLDER).glob(pattern)
    saved = {kept: kept.read_bytes() for kept in (tmp_path / FOLDER).iterdir()}
    problems = {}
    for damage, changed in damaged(pattern, saved[file]):
        for kept, content in saved.items():
            kept.write_bytes(content)
        file.write_bytes(changed)
        problem = unexpected(lambda: read_shard(path))
        if problem is not None:
            problems[damage] = problem
    assert not problems, "\n".join(f"{damage}: {problem}" for damage, problem in problems.items())
