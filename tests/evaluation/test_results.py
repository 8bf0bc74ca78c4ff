"""The files of an evaluation, and folders that hold some already: joined, or left as they are."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError, MetricError
from minigpt4.common.files import hold
from minigpt4.evaluation.predictions import Protocol, save_predictions
from minigpt4.evaluation.results import LOCK, choose_folder, leak_lines, write_results
from tests.evaluation.conftest import make_protocol, make_results

LABELS = ("stage 1", "epoch 0")


def test_every_file_is_written(tmp_path: Path, image_folder: Path) -> None:
    written = write_results(tmp_path / "out", make_protocol(), make_results(), image_dir=image_folder, title="A & B")
    content = json.loads(written.metrics.read_text())
    assert [row["checkpoint"] for row in content["rows"]] == ["stage 1", "epoch 0"]
    assert content["rows"][1] == {
        "checkpoint": "epoch 0",
        "Bleu_4": 0.1,
        "CIDEr": pytest.approx(1.25),
        "object_accuracy": 0.6,
    }
    assert content["protocol"]["images"] == 6 and content["protocol"]["split"] == "test"
    low, high = content["intervals_95"]["epoch 0"]["CIDEr"]
    assert low < 1.25 < high
    with written.per_image.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert lines[-1] | {"caption": ""} == {
        "checkpoint": "epoch 0",
        "image_id": "5",
        "filename": "5.png",
        "caption": "",
        "Bleu_4": "0.100000",
        "CIDEr": "1.500000",
    }
    comparisons = content["comparisons"]
    assert comparisons["baseline"] == "stage 1" and "BLEU-4 is left out" in comparisons["note"]
    (gain,) = comparisons["differences"]
    assert (gain["checkpoint"], gain["metric"], gain["difference"]) == ("epoch 0", "CIDEr", 1)
    assert gain["interval_95"] == [1, 1] and gain["p"] == gain["p_holm"] < 0.05
    assert "epoch 0: +1.000 (1.000 to 1.000), p 0.0" in written.table.caption
    assert "comparisons" not in json.loads(
        write_results(tmp_path / "one", make_protocol(), make_results(("stage 1",))).metrics.read_text()
    )
    assert written.example == image_folder / "0.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "per_image_scores.csv",
        "metric_trends.png",
        "metric_trends.svg",
        "report.html",
    }


def test_results_must_have_different_labels(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="same label"):
        write_results(tmp_path, make_protocol(), make_results(("a", "a")))
    with pytest.raises(MetricError, match="no checkpoint"):
        write_results(tmp_path, make_protocol(), [])


def fill(folder: Path, protocol: Protocol, leaks: dict | None = None) -> None:
    """Write an evaluation of the checkpoints /w/stage 1 and /w/epoch 0."""
    results = []
    for item in make_results(LABELS):
        path, file = f"/w/{item.checkpoint}", f"predictions_{item.checkpoint}.json"
        save_predictions(folder / file, item.predictions, {"checkpoint": path} | protocol.to_dict())
        results.append(replace(item, path=path, file=file, leaks=leaks))
    write_results(folder, protocol, results)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "out"
    fill(folder, make_protocol(), LEAKS)
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "out"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_folder_has_no_rows(tmp_path: Path) -> None:
    found = choose_folder(tmp_path / "new", make_protocol(), {"epoch 1": "/w/epoch 1"})
    assert (found.path, list(found.rows)) == (tmp_path / "new", [])
    assert found.files == {"epoch 1": "predictions_epoch_1.json"}
    assert found.path.is_dir()


def test_rows_of_the_same_protocol_are_kept(folder: Path) -> None:
    found = choose_folder(folder, make_protocol(), {"epoch 1": "/w/epoch 1", "epoch 0": "/w/epoch 0"})
    assert found.path == folder
    assert [row.checkpoint for row in found.rows] == list(LABELS)
    assert [row.path for row in found.rows] == ["/w/stage 1", "/w/epoch 0"]
    assert [list(row.predictions) for row in found.rows] == [item.predictions for item in make_results(LABELS)]
    assert found.rows[1].values["object_accuracy"] == 0.6 and found.rows[1].leaks == LEAKS
    assert found.files == {"epoch 1": "predictions_epoch_1.json", "epoch 0": "predictions_epoch 0.json"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "val"}, "split: was test, is val"),
        ({"generation": {"num_beams": 4}}, "generation.num_beams: was None, is 4"),
        ({"metrics": ("bleu",)}, "metrics: was"),
        ({"references_sha256": "0"}, "references_sha256: was"),
        ({"notes": {"frozen_weights": {"llm": "1"}}}, "frozen_weights.llm: was None, is 1"),
    ],
)
def test_another_protocol_goes_to_another_folder(
    folder: Path, change: dict, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, protocol = content(folder), replace(make_protocol(), **change)
    with caplog.at_level(logging.WARNING):
        found = choose_folder(folder, protocol, {"epoch 1": "/w/epoch 1"})
    assert (found.path, list(found.rows)) == (folder.with_name("out-2"), [])
    assert words in caplog.text and "the new results go to" in caplog.text
    assert content(folder) == before


def test_the_next_of_its_protocol_joins_the_folder_beside_it(folder: Path) -> None:
    other = replace(make_protocol(), prompt="Another.")
    fill(folder.with_name("out-2"), other)
    found = choose_folder(folder, other, {"epoch 1": "/w/epoch 1"})
    assert found.path == folder.with_name("out-2")
    assert [row.checkpoint for row in found.rows] == list(LABELS)


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ({"epoch 0": "/other/epoch 0"}, "a row 'epoch 0' of another checkpoint (/w/epoch 0)"),
        ({"w epoch 0": "/w/epoch 0"}, "a row of /w/epoch 0 under another name, 'epoch 0'"),
    ],
)
def test_labels_that_meet_go_to_another_folder(
    folder: Path, checkpoints: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_folder(folder, make_protocol(), checkpoints).path == folder.with_name("out-2")
    assert words in caplog.text


@pytest.mark.parametrize("damage", ["no JSON", "no checkpoints", "a list", "no file", "other references", "other run"])
def test_results_that_cannot_be_read_again_are_left_alone(folder: Path, damage: str) -> None:
    metrics, predictions = folder / "metrics.json", folder / "predictions_epoch 0.json"
    table, listed = json.loads(metrics.read_text()), json.loads(predictions.read_text())
    if damage == "no JSON":
        metrics.write_text("{")
    elif damage == "no checkpoints":
        del table["checkpoints"]
        metrics.write_text(json.dumps(table))
    elif damage == "a list":
        metrics.write_text("[]")
    elif damage == "no file":
        predictions.unlink()
    elif damage == "other references":
        listed["predictions"][0]["references"] = ["Another."]
        predictions.write_text(json.dumps(listed))
    else:
        listed["protocol"]["generation"] = {"num_beams": 4}
        predictions.write_text(json.dumps(listed))
    before = content(folder)
    assert choose_folder(folder, make_protocol(), {"epoch 1": "/w/epoch 1"}).path == folder.with_name("out-2")
    assert content(folder) == before


def test_predictions_without_scores_are_replaced_by_the_same_ones_only(tmp_path: Path) -> None:
    (item,) = make_results(("epoch 0",))
    made = {"checkpoint": "/w/epoch 0"} | make_protocol().to_dict()
    save_predictions(tmp_path / "out" / "predictions_epoch_0.json", item.predictions, made)
    again = choose_folder(tmp_path / "out", make_protocol(), {"epoch 0": "/w/epoch 0"})
    assert again.path == tmp_path / "out"
    other = choose_folder(tmp_path / "out", make_protocol(), {"epoch 0": "/v/epoch 0"})
    assert other.path == tmp_path / "out-2"
    beams = replace(make_protocol(), generation={"num_beams": 4})
    assert choose_folder(tmp_path / "out", beams, {"epoch 0": "/w/epoch 0"}).path == tmp_path / "out-2"


def test_an_evaluation_keeps_others_out_of_its_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as first, ExitStack() as second:
        one = choose_folder(tmp_path / "out", make_protocol(), {"epoch 0": "/w/epoch 0"}, first)
        two = choose_folder(tmp_path / "out", make_protocol(), {"epoch 1": "/w/epoch 1"}, second)
        assert (one.path, two.path) == (tmp_path / "out", tmp_path / "out-2")
        assert f"another command (process {os.getpid()} on " in caplog.text
        with pytest.raises(DataError, match="is writing to"), hold(tmp_path / "out-2" / LOCK, tmp_path / "out-2"):
            pass
    assert list(one.path.iterdir()) == list(two.path.iterdir()) == []
    assert choose_folder(tmp_path / "out", make_protocol(), {"epoch 1": "/w/epoch 1"}).path == one.path


def test_a_disk_without_locks_is_not_taken_for_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with ExitStack() as held:
        chosen = choose_folder(tmp_path / "out", make_protocol(), {"epoch 0": "/w/epoch 0"}, held)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and chosen.path == tmp_path / "out"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/out cannot be written: Not a directory"):
        choose_folder(tmp_path / "file" / "out", make_protocol(), {"epoch 0": "/w/epoch 0"})


def test_the_lock_of_a_killed_evaluation_holds_no_command_up(tmp_path: Path) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with hold(tmp_path / LOCK, tmp_path):
            if os.fork() == 0:  # a loader worker, which outlives the command: until this test closes the pipe
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / LOCK).read_text().startswith(f"process {pid} on ")
    with hold(tmp_path / LOCK, tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / LOCK).exists()
    os.close(write)
    os.close(read)


LEAKS = {
    "images": 0,
    "ids": 0,
    "files": 0,
    "pixels": 0,
    "near_copies": 0,
    "trained_images": 1000,
    "not_opened": 0,
    "complete": True,
    "validated_and_trained": 0,
    "examples": [],
}


def test_leaks_in_words() -> None:
    found = {**LEAKS, "images": 4, "ids": 1, "files": 2, "pixels": 3, "near_copies": 1, "examples": ["a.png and b.png"]}
    lines = leak_lines({"stage 1": None, "epoch 0": LEAKS, "epoch 1": dict(LEAKS), "epoch 2": found}, 200)
    assert lines == [
        "stage 1: not recorded whether any of the 200 images was trained on",
        "epoch 0, epoch 1: no leak: the 200 images were compared with the 1,000 images trained on, by id, file, pixels "
        "and looks",
        "epoch 2: LEAK: 4 of the 200 images were trained on (1 same ids, 2 same files, 3 same pixels, 1 near copies), "
        "such as a.png and b.png; scores on them measure memory",
    ]
    (line,) = leak_lines({"a": {**LEAKS, "not_opened": 5, "complete": False, "validated_and_trained": 7}}, 1)
    assert "5 of those trained on were compared by id and path only" in line
    assert (
        "what its starting checkpoint was trained on is not recorded" in line and "the validation used 7 images" in line
    )


def test_leaks_are_in_metrics_table_and_report_and_stay_with_their_row(tmp_path: Path) -> None:
    one, two = make_results(LABELS)
    found = {**LEAKS, "images": 3, "ids": 3}
    write_results(tmp_path, make_protocol(), [one, replace(two, leaks=found)])
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["leaks"] == {"stage 1": None, "epoch 0": found}
    written = write_results(tmp_path, make_protocol(), [replace(two, leaks=found)])
    assert "epoch 0: LEAK: 3 of the 6 images" in written.table.caption
    assert "epoch 0: LEAK: 3 of the 6 images" in written.report.read_text()
