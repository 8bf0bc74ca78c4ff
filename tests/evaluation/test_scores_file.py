"""What --out may replace where predictions are scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt4.evaluation import questions, structured
from minigpt4.evaluation.predictions import Prediction, save_predictions


def score_answers(preds: str, out: str) -> None:
    questions.main(["--preds", preds, "--out", out])


def score_triples(preds: str, out: str) -> None:
    structured.main(["triples", "--preds", preds, "--out", out])


@pytest.mark.parametrize("score", [score_answers, score_triples])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"protocol": {}, "rows": [{}, {}], "checkpoints": {}}', "the results of an evaluation"),
        ('{"precision": 1}', "something else"),
        ("not JSON", "something else"),
        ("[1]", "something else"),
    ],
)
def test_what_others_wrote_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], score: Callable[[str, str], None], content: str, what: str
) -> None:
    text = '[["dog", "on", "grass"]]'
    path = str(save_predictions(tmp_path / "a.json", [Prediction("1", text, "a.png", (text,))], {"metrics": ["exact"]}))
    other = tmp_path / "metrics.json"
    other.write_text(content)
    for out in (str(other), path):
        before = Path(out).read_bytes()
        with pytest.raises(SystemExit):
            score(path, out)
        assert f"{out} holds {what if out == str(other) else 'something else'}: name another" in capsys.readouterr().err
        assert Path(out).read_bytes() == before
    for _ in range(2):  # its own scores may be written again
        score(path, str(tmp_path / "scores.json"))
    assert json.loads((tmp_path / "scores.json").read_text())
