"""A few damages of every kind of file; `make torture` does thousands."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.damage import KINDS, damaged
from tests.faults.files import SUBJECTS, Subject, damage_file
from tests.faults.outcomes import Outcome

DAMAGES = 5
"""Of each kind of file."""


@pytest.mark.parametrize("subject", SUBJECTS, ids=[subject.name for subject in SUBJECTS])
def test_a_damaged_file_is_named_or_read(subject: Subject, tmp_path: Path) -> None:
    tally = damage_file(tmp_path / "files", subject, DAMAGES, seed=0)
    assert tally.outcomes == {Outcome.survived: DAMAGES}, str(tally)


def test_nonsense_is_noticed(tmp_path: Path) -> None:
    """The check itself: other content of a guarded file, a traceback, a hint in two lines."""

    def write(folder: Path) -> None:
        (folder / "a").write_text("3\n" * 9)

    def tally(read: object, guarded: bool) -> dict[Outcome, int]:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return damage_file(place, Subject("a", "a", write, read, guarded), len(KINDS), seed=0).outcomes  # type: ignore[arg-type]

    def lenient(folder: Path) -> bytes:
        return (folder / "a").read_bytes()

    def strict(folder: Path) -> list[int]:
        return [int(line) for line in (folder / "a").read_text().splitlines()]

    assert tally(lenient, True) == {Outcome.wrong: len(KINDS)}
    assert tally(lenient, False) == {Outcome.survived: len(KINDS)}
    assert tally(strict, False)[Outcome.wrong] > 2


def test_the_same_seed_gives_the_same_damages() -> None:
    content = bytes(Random(0).randbytes(300))
    first, again, other = (list(damaged("a", content, 20, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(changed != content for _, changed in first)
