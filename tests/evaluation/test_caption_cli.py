"""`python -m minigpt4.evaluation.caption`: every layout of files, and every mistake in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minigpt4.evaluation.caption import main, score_captions
from minigpt4.evaluation.predictions import Prediction, save_predictions
from minigpt4.evaluation.protocol import references_sha256

Captions = dict[str, list[str]]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert found["rows"] == [{"checkpoint": "mine", **scores.corpus}]
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
    # A prediction for another split's image is left aside; that is what --split asks for.
    preds = write(tmp_path / "more.json", {**predictions, "3": "a bird"})
    again = run(tmp_path / "m.json", "--refs", flickr, "--preds", preds, "--split", "test", "--metrics", "bleu")
    assert again["per_image"] == found["per_image"]


def test_a_predictions_file_carries_its_references_and_protocol(
    tmp_path: Path, references: Captions, predictions: dict[str, str]
) -> None:
    listed = [Prediction(k, predictions[k], f"{k}.jpg", tuple(references[k])) for k in references]
    made = {"dataset": "scenes", "split": "val", "prompt": "Describe.", "generation": {"num_beams": 2}}
    path = save_predictions(tmp_path / "epoch_4.json", listed, made)
    found = run(tmp_path / "m.json", "--preds", str(path), "--metrics", "rouge")
    assert found["rows"] == [{"checkpoint": "epoch_4", **score_captions(references, predictions, "rouge").corpus}]
    assert {key: found["protocol"][key] for key in made} == made


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
    ("content", "said"),
    [
        ("[{", "is not JSON"),
        ('{"1": "a", "1": "b"}', "the key '1' comes twice"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]', "come twice"),
        ('[{"image_id": 1}]', "entry 0 has no 'caption'; its keys: image_id"),
        ('[{"image_id": 1, "caption": ["a"]}]', "image 1: the caption is not text"),
        ('["a dog"]', "entry 0 is not an object"),
        ("3", "holds no predictions"),
        ('{"predictions": [{"image_id": 1}]}', "prediction 0 has no caption"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_predictions_of_no_use(
    tmp_path: Path, coco: str, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content.encode("latin-1"))
    assert said in refused(capsys, "--refs", coco, "--preds", str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 1}, "holds no references"),
        ([{"image_id": 1, "grounded_caption": "A dog. A cat."}], "make the file again with prepare_flickr30k.py"),
        ([{"image_id": 1, "captions": "A dog."}], "'captions' is not a list"),
        ([{"image_id": 1, "captions": ["a"]}, {"image_id": "1", "captions": ["a"]}], "come twice"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "annotation 0 is of image 2"),
        ({"images": [{"id": 1}], "annotations": []}, "have no prediction"),
    ],
)
def test_references_of_no_use(tmp_path: Path, content: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    preds = write(tmp_path / "p.json", {"9": "a dog"})
    assert said in refused(capsys, "--refs", write(tmp_path / "r.json", content), "--preds", preds)


def test_as_a_command(tmp_path: Path, coco: str, results: str) -> None:
    command = [sys.executable, "-m", "minigpt4.evaluation.caption", "--refs", coco, "--out", str(tmp_path / "m.json")]
    done = subprocess.run([*command, "--preds", results], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout and (tmp_path / "m.json").is_file()
    done = subprocess.run([*command, "--preds", "none.json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: none.json does not exist\n")
