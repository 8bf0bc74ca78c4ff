"""PTB tokenization: the COCO server's tokens, and no caption ever on another image."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import java as ptb
from minigpt4.evaluation.java import check_tokenizer, tokenize
from tests.evaluation.conftest import FakeJava


def test_lower_case_without_punctuation() -> None:
    assert tokenize(["A man, riding a horse.", "The dog's ball -- it's RED!"]) == [
        "a man riding a horse",
        "the dog 's ball it 's red",
    ]
    assert tokenize([]) == []


@pytest.mark.parametrize(
    "space", ["\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\xa0", "\u2028", "\u2029", "\n\n\v \u2029"]
)
def test_white_space_of_every_kind_moves_no_caption(space: str) -> None:
    captions = [f"a dog{space}runs", f"{space}a cat", f"two birds{space}", "a fish"]
    assert tokenize(captions) == ["a dog runs", "a cat", "two birds", "a fish"]


def test_captions_without_words_keep_their_places() -> None:
    assert tokenize(["", "a dog", " ", "...", "a cat", ""]) == ["", "a dog", "", "", "a cat", ""]


def test_odd_captions_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    captions = ["*NL* here", 'a <p class="x', 'y"> b', "<!-- a", "--> b", "\x00null", "lone \ud800 half", "naïve 中文"]
    found = tokenize(captions)
    assert len(found) == len(captions)
    assert found[-1] == "naïve 中文"


def test_a_java_that_fails_is_noticed(fake_java: FakeJava) -> None:
    fake_java("echo 'Error: could not reserve memory' >&2; exit 3")
    with pytest.raises(MetricError, match="exit status 3: Error: could not reserve memory"):
        tokenize(["a dog"])


def test_a_java_that_says_nothing_is_noticed(fake_java: FakeJava) -> None:
    fake_java("cat > /dev/null; exit 0")
    with pytest.raises(MetricError, match="different images"):
        tokenize(["a dog", "a cat"])


def test_lines_too_many_are_noticed(fake_java: FakeJava) -> None:
    fake_java("cat; echo one more")
    with pytest.raises(MetricError, match="3 lines for 2 captions"):
        tokenize(["a dog", "a cat"])


def test_a_java_that_hangs_is_given_up(fake_java: FakeJava) -> None:
    fake_java("exec sleep 60")
    began = time.monotonic()
    with pytest.raises(MetricError, match="no answer within"):
        tokenize(["a dog"], timeout=0.5)
    assert time.monotonic() - began < 20


def test_a_path_with_a_space(tmp_path: Path, moved_folder: Callable[[str, Path], Path]) -> None:
    moved_folder("tokenizer", tmp_path / "a folder" / "tokenizer")
    assert tokenize(["A dog."]) == ["a dog"]


def test_the_package_folder_is_never_written_to(tmp_path: Path, moved_folder: Callable[[str, Path], Path]) -> None:
    folder = moved_folder("tokenizer", tmp_path / "tokenizer")
    folder.chmod(0o555)
    # A file made and removed again would change the folder's time, also where a superuser ignores its mode.
    before = folder.stat().st_mtime_ns
    try:
        assert tokenize(["A dog."]) == ["a dog"]
        assert folder.stat().st_mtime_ns == before
    finally:
        folder.chmod(0o755)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "metric_folder", lambda name: tmp_path)
    with pytest.raises(MetricError, match="pip install --force-reinstall pycocoevalcap"):
        check_tokenizer()
    monkeypatch.undo()
    monkeypatch.setattr(ptb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetricError, match="pip install pycocoevalcap"):
        check_tokenizer()


@pytest.mark.parametrize("name", ["refs", "results"])
def test_same_tokens_as_pycocoevalcap(shared_data: Path, name: str) -> None:
    folder = shared_data / "coco_fakecap"
    content = json.loads((folder / f"captions_val2014_fakecap_{name}.json").read_text())
    annotations = content["annotations"] if name == "refs" else content
    found: dict[str, list[str]] = {}
    for item, tokens in zip(annotations, tokenize([item["caption"] for item in annotations]), strict=True):
        found.setdefault(str(item["image_id"]), []).append(tokens)
    assert found == json.loads((folder / f"{name}_after_ptb.json").read_text())
