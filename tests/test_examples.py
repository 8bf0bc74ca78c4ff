"""The tasks for other programs in examples/, without these programs."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.evaluation.caption import score_captions
from minigpt4.processors.image import decode_pixels

ROOT = Path(__file__).resolve().parent.parent
TASK = ROOT / "examples" / "lmms_eval" / "captions.yaml"
TABLE = ROOT / "examples" / "vlmevalkit"
RECORDS = [
    {
        "image_id": "a",
        "captions": ["A red ring on a tan background.", "There is one RED ring, and nothing\u2028else."],
    },
    {
        "image_id": "b",
        "captions": ["Two green squares: one small, one large.", "A small green square (and a large one)."],
    },
]
ANSWERS = {"a": "a red ring sits\non tan", "b": "Two squares, one large, one in red."}


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """The task as lmms-eval reads it: a name after `!function` is one of the file beside it."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
        module, name = node.value.split(".")
        found: Callable[..., Any] = runpy.run_path(str(TASK.parent / f"{module}.py"))[name]
        return found

    Loader.add_constructor("!function", function)
    read: dict[str, Any] = yaml.load(TASK.read_text("utf-8"), Loader)
    return read


def test_the_task_asks_what_the_evaluation_of_the_quick_start_asks(task: dict[str, Any]) -> None:
    config = load_config(ROOT / "eval_configs" / "quickstart.yaml").config
    scenes = config.datasets["scenes"]
    assert task["dataset_kwargs"]["data_files"] == {"test": scenes.annotations}
    assert task["lmms_eval_specific_kwargs"]["default"] == {"images": scenes.images}
    assert task["generation_kwargs"]["max_new_tokens"] == config.evaluation.generation.max_new_tokens
    first = (ROOT / "prompts" / "alignment.txt").read_text("utf-8").splitlines()[0]
    assert first.endswith(f"</Img> {task['doc_to_text']}")


def test_cider_is_ours(task: dict[str, Any]) -> None:
    items = [task["process_results"](record, [ANSWERS[record["image_id"]]]) for record in RECORDS]
    assert [item["unanswered"] for item in items] == [0, 0]
    cider = task["metric_list"][0]["aggregation"]([item["CIDEr"] for item in items])
    references = {record["image_id"]: record["captions"] for record in RECORDS}
    ours = score_captions(references, ANSWERS, "cider").corpus["CIDEr"]
    assert cider == pytest.approx(ours, abs=1e-12) and ours > 0.1


def test_no_score_where_a_request_failed(task: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    answers = ["a red ring", "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Connection error."]
    items = [task["process_results"](record, [answer]) for record, answer in zip(RECORDS, answers, strict=True)]
    assert [item["unanswered"] for item in items] == [0, 1]
    assert math.isnan(task["metric_list"][0]["aggregation"]([item["CIDEr"] for item in items]))
    assert "1 of 2 requests failed: b: [LMMS_EVAL_REQUEST_FAILED after 5 retries] Connection error." in caplog.text


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "turned.jpg"), ("CMYK", "four.jpg"), ("RGBA", "clear.png"), ("P", "few.gif")]
)
def test_the_image_sent_is_the_image_stored(task: dict[str, Any], tmp_path: Path, mode: str, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    image = Image.fromarray(noise if mode in ("RGBA", "CMYK") else noise[..., :3], "CMYK" if mode == "CMYK" else None)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.convert(mode).save(tmp_path / name, **({"exif": exif} if name.endswith("jpg") else {}))
    (given,) = task["doc_to_visual"]({"filename": name}, {"images": str(tmp_path)})
    sent = io.BytesIO()
    given.save(sent, "PNG")
    stored = decode_pixels(tmp_path / name)
    assert stored.shape == ((20, 12, 3) if name.endswith("jpg") else (12, 20, 3))
    assert np.array_equal(decode_pixels(sent.getvalue()), stored)


def test_only_test_images_are_asked_about(task: dict[str, Any]) -> None:
    class Dataset(list[dict[str, str]]):
        def filter(self, kept: Callable[[dict[str, str]], bool]) -> list[dict[str, str]]:
            return [record for record in self if kept(record)]

    splits = Dataset({"split": name} for name in ("train", "test", "val", "test"))
    assert task["process_docs"](splits) == [{"split": "test"}, {"split": "test"}]


def test_a_table_for_vlmevalkit(tmp_path: Path) -> None:
    records = [
        {**record, "filename": f"{record['image_id']}.png", "split": split}
        for record, split in zip(RECORDS, ("train", "test"), strict=True)
    ]
    annotations = tmp_path / "flickr30k.json"
    annotations.write_text(json.dumps(records), "utf-8")
    out = tmp_path / "LMUData" / "scenes.tsv"
    write = runpy.run_path(str(TABLE / "captions_tsv.py"))["main"]
    write(["--annotations", str(annotations), "--images", str(tmp_path / "images"), "--out", str(out)])
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert ast.literal_eval(row.pop("answer")) == RECORDS[1]["captions"]
    path = str(tmp_path / "images" / "b.png")
    assert row == {"index": "b", "image_path": path, "question": "Describe this image in detail."}
    config = json.loads((TABLE / "captions.json").read_text("utf-8"))
    assert config["data"] == {out.stem: {"class": "ImageCaptionDataset", "dataset": out.stem}}
