"""METEOR and SPICE: never a hang, never a silent failure, from any folder."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import meteor_spice as java_scorers
from minigpt4.evaluation import meteor_spice as java_worker
from minigpt4.evaluation.meteor_spice import check_java_scorer, score_with_java
from tests.evaluation.conftest import FakeJava

GOLD = {"1": ["a dog runs fast", "the dog is running"], "2": ["two cats sleep on a bed"]}
SAID = {"1": "a dog runs fast", "2": "one bird"}
Move = Callable[[str, Path], Path]


@pytest.mark.slow
def test_meteor_of_the_same_and_of_other_words() -> None:
    # Three bars separate METEOR's captions: left in, the rest would be one more reference.
    gold = {**GOLD, "3": ["a dog ||| a cat"], "4": ["two birds"]}
    score, per_image = score_with_java("meteor", gold, {**SAID, "3": "a dog ||| a cat", "4": ""})
    assert per_image == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}
    assert 0 < score < 1


@pytest.mark.slow
def test_meteor_from_a_path_with_a_space(tmp_path: Path, moved_folder: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = score_with_java("meteor", GOLD, SAID)
    folder = moved_folder("meteor", tmp_path / "a folder" / "pycocoevalcap" / "meteor")
    # So that the child would import the moved METEOR as well, as it would an installed one.
    monkeypatch.syspath_prepend(tmp_path / "a folder")
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    assert score_with_java("meteor", GOLD, SAID) == usual
    assert folder.stat().st_mtime_ns == before


def test_no_place_without_a_space(tmp_path: Path, moved_folder: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_folder("meteor", tmp_path / "a folder" / "meteor")
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(MetricError, match="set TMPDIR"):
        score_with_java("meteor", GOLD, SAID)


def test_a_java_that_fails_is_reported_at_once(fake_java: FakeJava) -> None:
    fake_java("echo 'Error: out of memory' >&2; exit 1")
    began = time.monotonic()
    with pytest.raises(MetricError, match=r"METEOR failed.*out of memory"):
        score_with_java("meteor", GOLD, SAID)
    assert time.monotonic() - began < 30


def test_a_number_that_is_none_is_reported_at_once(fake_java: FakeJava) -> None:
    fake_java("while read line; do echo 0,5; done")
    with pytest.raises(MetricError, match=r"METEOR failed.*ValueError"):
        score_with_java("meteor", GOLD, SAID)


def test_a_meteor_that_hangs_is_stopped_with_its_java(fake_java: FakeJava, tmp_path: Path) -> None:
    number = tmp_path / "pid"
    fake_java(f"echo $$ > '{number}'; exec sleep 60")
    began = time.monotonic()
    with pytest.raises(MetricError, match="METEOR gave no answer within 3 s"):
        score_with_java("meteor", GOLD, SAID, timeout=3)
    assert time.monotonic() - began < 30
    assert not _runs(int(number.read_text()))


def test_a_child_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_scorers.sys, "executable", "/bin/false")
    with pytest.raises(MetricError, match="METEOR died without an answer"):
        score_with_java("meteor", GOLD, SAID)


def test_spice_names_the_jars_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_scorers, "metric_folder", lambda name: tmp_path)
    with pytest.raises(MetricError, match=r"SPICE needs .*stanford-corenlp-3\.6\.0-models\.jar"):
        check_java_scorer("spice")


def test_spice_from_a_folder_that_cannot_be_written(
    tmp_path: Path, moved_folder: Move, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jars that SPICE needs are not at hand, so its Java is played by a script that knows the answer."""
    folder = moved_folder("spice", tmp_path / "spice")
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (folder / "lib" / name).touch()
    answer = tmp_path / "answer.json"
    # Images come back in the order of their sorted ids, whatever the order of the references.
    answer.write_text(json.dumps([{"image_id": k, "scores": {"All": {"f": f}}} for k, f in (("1", 0.25), ("2", 0.5))]))
    fake_java(f'while [ "$1" != "-out" ]; do shift; done; cp "{answer}" "$2"')
    monkeypatch.setattr(java_scorers, "_writable", lambda folder: False)
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    score, per_image = score_with_java("spice", {k: GOLD[k] for k in ("2", "1")}, SAID)
    assert (score, per_image) == (0.375, {"1": 0.25, "2": 0.5})
    assert folder.stat().st_mtime_ns == before
    java_scorers._place_scorer("spice", tmp_path / "copy")
    assert (tmp_path / "copy" / "pycocoevalcap" / "spice").stat().st_mode & 0o200


def test_what_spice_says_when_it_fails(
    tmp_path: Path, moved_folder: Move, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(java_scorers, "_writable", lambda folder: False)
    folder = moved_folder("spice", tmp_path / "spice")
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (folder / "lib" / name).touch()
    fake_java("echo 'Error: no lmdb here' >&2; echo ' at Spice.main' >&2; exit 1")
    with pytest.raises(MetricError, match=r"SPICE failed.*exit status 1.*it said: Error: no lmdb here$"):
        score_with_java("spice", GOLD, SAID)


def _runs(process: int) -> bool:
    """Whether a process is alive; one that has ended and waits to be reaped is not."""
    try:
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


class Broken:
    """A scorer that fails as METEOR does, and whose destructor would be noticed."""

    destroyed: ClassVar[list[str]] = []

    def compute_score(self, references: dict, results: dict) -> None:
        raise ValueError("no number")

    def __del__(self) -> None:
        self.destroyed.append("now METEOR would wait for ever")


def test_a_scorer_that_failed_is_not_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(java_worker.SCORERS, "meteor", (__name__, "Broken"))
    monkeypatch.setattr(java_worker, "_KEPT", [])
    assert java_worker._score("meteor", {}, {}) == {"error": "ValueError: no number"}
    gc.collect()
    assert Broken.destroyed == []
