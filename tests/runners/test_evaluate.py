"""Evaluation of several checkpoints: files, distribution over processes, unreadable images and errors."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.distributed import Processes
from minigpt4.common.errors import CheckpointError, ConfigError, DataError, MetricError, ProcessLostError
from minigpt4.common.schema import EvaluationConfig
from minigpt4.common.types import Record
from minigpt4.evaluation.predictions import Prediction, load_predictions
from minigpt4.runners.evaluate import _collect, checkpoint_files, evaluate
from minigpt4.tasks.captioning import Captioning, select_images
from tests.launch import launch
from tests.models.parity import Case
from tests.runners.project import PARITY_A, REPOSITORY, Project

OPTIONS = (
    "evaluation.split=val",
    "evaluation.generation.max_new_tokens=8",
    "evaluation.batch_size=2",
    "evaluation.num_workers=0",
)


CHECKPOINTS = ("checkpoint_0.pth", "checkpoint_1.pth", "trained.safetensors")
"""Two checkpoints without a record of what they were trained on, and one with it."""
LABELS = ["epoch 0", "epoch 1", "trained"]
TRAINED = ("run.run_dir=trained", "run.max_epoch=1", "run.iters_per_epoch=1", "run.valid_splits=[train]")
"""A run that is validated on what it is trained on."""


def add_copies(folder: Path) -> None:
    """Add a test split: three images of the training, as a copy, in another format and enlarged; and a new one."""
    shutil.copy(folder / "image_0.png", folder / "copy.png")
    Image.open(folder / "image_1.png").save(folder / "pixels.bmp")
    Image.open(folder / "image_2.png").resize((64, 48), Image.Resampling.NEAREST).save(folder / "near.png")
    Image.new("RGB", (32, 24), (1, 255, 128)).save(folder / "new.png")
    rows = [
        {"image": name, "answer": "a dog", "split": "test"}
        for name in ("copy.png", "pixels.bmp", "near.png", "new.png")
    ]
    with (folder / "data.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("evaluate"))
    add_copies(project.folder)
    shutil.copy(project.train_here(*TRAINED) / "checkpoint_0.safetensors", project.folder / "trained.safetensors")
    state = torch.load(PARITY_A / "minigpt4.pth", weights_only=True)["model"]
    for epoch in range(2):
        changed = {name: tensor * (1 + 0.5 * epoch) for name, tensor in state.items() if name.startswith("llama_proj")}
        torch.save({"model": changed}, project.folder / f"checkpoint_{epoch}.pth")
    return project


def run(project: Project, *options: str, ckpt: tuple[str, ...] = ("checkpoint_0.pth",), out: str = "out") -> Path:
    target = project.folder / out
    evaluate(load_config("config.yaml", [*OPTIONS, *options, f"evaluation.output_dir={target}"]).config, ckpt)
    return target


@pytest.fixture(autouse=True)
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)


@pytest.fixture(scope="module")
def written(project: Project) -> Path:
    before = Path.cwd()
    os.chdir(project.folder)
    try:
        return run(project, ckpt=CHECKPOINTS, out="both")
    finally:
        os.chdir(before)


def test_a_row_for_each_checkpoint(written: Path) -> None:
    content = json.loads((written / "metrics.json").read_text())
    assert [row["checkpoint"] for row in content["rows"]] == LABELS
    assert all({"Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"} <= set(row) for row in content["rows"])
    protocol = content["protocol"]
    assert (protocol["split"], protocol["images"], protocol["references"]) == ("val", 7, 7)
    assert protocol["prompt"] == "###Human: <Img><ImageHere></Img> Describe it. ###Assistant: "
    for name in ("metric_trends.png", "report.html", "predictions_epoch_0.json", "predictions_epoch_1.json"):
        assert (written / name).stat().st_size > 100


def test_predictions_are_of_the_right_checkpoint_and_image(written: Path, project: Project) -> None:
    files = [load_predictions(written / f"predictions_epoch_{epoch}.json") for epoch in range(2)]
    assert files[0].captions() != files[1].captions()
    rows = [json.loads(line) for line in (project.folder / "data.jsonl").read_text().splitlines()]
    references = {Path(row["image"]).stem: [row["answer"]] for row in rows if row["split"] == "val"}
    assert {Path(item.filename).stem: list(item.references) for item in files[0].predictions} == references


def test_an_image_alone_gets_the_same_caption(written: Path, project: Project) -> None:
    alone = load_predictions(run(project, "evaluation.limit=1", out="alone") / "predictions_epoch_0.json")
    (image_id,) = alone.captions()
    together = load_predictions(written / "predictions_epoch_0.json").captions()
    assert alone.captions()[image_id] == together[image_id]


@pytest.mark.distributed
def test_two_processes_write_the_same_files_as_one(written: Path, project: Project) -> None:
    script = str(REPOSITORY / "eval_scripts" / "eval_flickr30k.py")
    command = [script, "--cfg-path", "config.yaml", "--ckpt", *CHECKPOINTS, "--out", "two"]
    done = launch(*command, "--options", *OPTIONS, ranks=2, cwd=project.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (written, project.folder / "two")
    )
    assert one.keys() == two.keys() and len(one) == 8
    for files in (one, two):
        metrics = json.loads(files["metrics.json"])
        made = metrics.pop("made")
        assert set(made) == {"date", "command", "version"}
        assert metrics["comparisons"]["differences"] and all("CIDEr_shuffled" in row for row in metrics["rows"])
        assert metrics["leaks"][LABELS[0]] is None and metrics["leaks"]["trained"]["trained_images"] == 24
        files["metrics.json"] = json.dumps(metrics).encode()
        report = files["report.html"].decode()
        (line,) = [line for line in report.splitlines() if 'id="made"' in line]
        assert made["date"] in line and made["version"] in line
        files["report.html"] = report.replace(line, "").encode()
        assert made["date"] not in files["report.html"].decode()
    assert one == two
    assert done.stdout.count("Report:") == 1  # only rank 0 prints the table
    (hint,) = [line for line in done.stdout.splitlines() if line.startswith("Chat:")]
    assert set(OPTIONS) < set(shlex.split(hint))  # without them another model would answer
    assert "24 of the" not in done.stdout and "not recorded whether any of the 7 images" in done.stdout


def test_images_trained_on_are_warned_of_and_counted(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained = ("trained/checkpoint_0.pth",)
    content = json.loads((run(project, "evaluation.split=test", ckpt=trained, out="test") / "metrics.json").read_text())
    (found,) = content["leaks"].values()
    assert {key: found[key] for key in ("images", "ids", "files", "pixels", "near_copies")} == {
        "images": 3,
        "ids": 0,
        "files": 1,
        "pixels": 2,
        "near_copies": 1,
    }
    assert found["trained_images"] == 24 and found["not_opened"] == 0
    warned = capsys.readouterr().err
    assert "LEAK: 3 of the 4 images were trained on" in warned and "such as copy.png and image_0.png" in warned
    # The split that was trained on, compared by names alone.
    train = run(project, "evaluation.split=train", "evaluation.compare_images=false", ckpt=trained, out="train")
    (found,) = json.loads((train / "metrics.json").read_text())["leaks"].values()
    assert (found["images"], found["ids"], found["files"], found["not_opened"]) == (24, 24, 24, 24)


def test_validation_on_what_is_trained_on_is_warned_of(project: Project, written: Path) -> None:
    log = (project.folder / "trained" / "train.log").read_text()
    assert "24 of the 24 validation images are trained on, such as image_0.png" in log
    found = json.loads((written / "metrics.json").read_text())["leaks"]["trained"]
    assert found["validated_and_trained"] == 24 and found["images"] == 0


def test_unreadable_images_are_counted_and_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    name = "image_25.png"
    good = (project.folder / name).read_bytes()
    try:
        (project.folder / name).write_bytes(good[:40])
        out = run(project, out="broken")
    finally:
        (project.folder / name).write_bytes(good)
    content = json.loads((out / "metrics.json").read_text())
    assert content["protocol"]["images"] == 6
    (message,) = content["protocol"]["notes"]["pictures_left_out"]
    assert name in message
    assert name in capsys.readouterr().err


def test_nothing_readable_is_an_error(project: Project, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 7 images can be read"):
        run(project, f"datasets.shapes.images={tmp_path}")


def test_predictions_are_kept_when_scoring_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MetricError("Java went away")

    monkeypatch.setattr("minigpt4.runners.evaluate.score_checkpoints", fail)
    with pytest.raises(MetricError, match="Java went away"):
        run(project, out="unscored")
    assert len(load_predictions(project.folder / "unscored" / "predictions_epoch_0.json").predictions) == 7


def test_scene_and_fluency_scores_are_added(project: Project) -> None:
    scenes = {f"image_{number}.png": {"background": "grey", "objects": []} for number in range(24, 31)}
    (project.folder / "scenes.json").write_text(json.dumps(scenes))
    options = ("evaluation.scenes=scenes.json", "evaluation.fluency=true", "evaluation.fraction=0.5")
    content = json.loads((run(project, *options, out="more") / "metrics.json").read_text())
    (row,) = content["rows"]
    # The model's words are random and name no object, which is right for empty scenes, shuffled or not.
    assert (row["object_accuracy"], row["all_objects_accuracy"], row["object_accuracy_shuffled"]) == (1, 1, 1)
    assert {"repetition", "fragments"} <= set(row)
    assert content["protocol"]["images"] == 4
    assert content["protocol"]["selection"] == {"fraction": 0.5, "seed": 42}


def test_without_an_output_folder_a_new_one_is_made(project: Project) -> None:
    cfg = load_config("config.yaml", [*OPTIONS, "evaluation.limit=2", "paths.output_root=root"]).config
    folders = []
    for _ in range(2):
        (written,) = evaluate(cfg, ["checkpoint_0.pth"])
        folders.append(written.metrics.parent)
    assert len(set(folders)) == 2
    assert {folder.parent for folder in folders} == {Path("root/evaluation")}


def fail_if_called(*_: Any, **__: Any) -> None:
    raise AssertionError("encoding began before everything was checked")


@pytest.mark.parametrize(
    ("options", "ckpt", "error", "words"),
    [
        (["evaluation.metrics=[blue]"], ["checkpoint_0.pth"], MetricError, "did you mean 'bleu'"),
        (["evaluation.split=dev"], ["checkpoint_0.pth"], ConfigError, "there is no split 'dev'"),
        (["evaluation.prompt=Describe it."], ["checkpoint_0.pth"], DataError, "0 image placeholder"),
        (["evaluation.dataset=flickr"], ["checkpoint_0.pth"], ConfigError, "evaluation.dataset: 'flickr'"),
        (["evaluation.limit=3", "evaluation.fraction=0.5"], ["checkpoint_0.pth"], ConfigError, "choose one"),
        (["evaluation.limit=0"], ["checkpoint_0.pth"], ConfigError, "evaluation.limit"),
        (["evaluation.fraction=2"], ["checkpoint_0.pth"], ConfigError, "evaluation.fraction"),
        (["evaluation.scenes=none.json"], ["checkpoint_0.pth"], DataError, "none.json"),
        ([], ["checkpoint_0.pth", "checkpoint_9.pth"], CheckpointError, "checkpoint_9.pth does not exist"),
        ([], ["checkpoint_0.pth", "checkpoint_0.pth"], ConfigError, "named twice"),
        ([], ["checkpoint_0.pth", "./checkpoint_0.pth"], ConfigError, "named twice, also as checkpoint_0.pth"),
        (["model.ckpt=null"], [], ConfigError, "no checkpoint to evaluate"),
    ],
)
def test_everything_that_can_fail_does_so_before_generation(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    ckpt: list[str],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(Captioning, "encode_images", fail_if_called)
    with pytest.raises(error, match=words.replace(".", r"\.")):
        run(project, *options, ckpt=tuple(ckpt))


def test_image_ids_are_checked_before_anything_is_loaded(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("minigpt4.runners.evaluate._load_model", fail_if_called)
    rows = [
        {"image": "image_24.png", "question": f"Question {n}?", "answer": "a dog", "split": "val"} for n in range(2)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line 2: the image id 'image_24' is also that of .*line 1.*an id of its own"):
        run(project, f"datasets.shapes.annotations={path}", f"datasets.shapes.images={project.folder}")


def test_an_output_folder_that_cannot_be_written_is_found_before_encoding(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captioning, "encode_images", fail_if_called)
    (project.folder / "a file").touch()
    with pytest.raises(ConfigError, match=r"evaluation\.output_dir: .*a file cannot be written to .*--out"):
        run(project, out="a file")


def records(count: int) -> list[Record]:
    return [Record(image_id=f"i{n}", images=(f"i{n}.png",), answers=("a",)) for n in range(count)]


def test_selection() -> None:
    rows = records(200)
    assert select_images(rows, None, None, 1) == list(range(200))
    assert select_images(rows, 3, None, 1) == [0, 1, 2]
    assert select_images(rows, 300, None, 1) == list(range(200))
    some = select_images(rows, None, 0.05, 1)
    assert len(some) == 10
    assert some == sorted(some)
    assert some == select_images(rows, None, 0.05, 1)
    assert some != select_images(rows, None, 0.05, 2)
    # Images are selected by their ids, whatever their order in the file.
    reordered = select_images(rows[::-1], None, 0.05, 1)
    assert {rows[i].image_id for i in some} == {rows[::-1][i].image_id for i in reordered}


def test_groups_are_distributed_complete(parity_a: Case) -> None:
    class Rows:
        prompts = ("<Img><ImageHere></Img> What is it?",)
        records = records(27)

    cfg = EvaluationConfig(batch_size=2)
    one = Captioning(parity_a.model, Rows(), range(27), cfg).groups  # type: ignore[arg-type]
    shares = [Captioning(parity_a.model, Rows(), range(27), cfg, rank, 3).groups for rank in range(3)]  # type: ignore[arg-type]
    assert sorted(group for share in shares for group in share) == one
    assert [index for group in one for index in group] == list(range(27))
    assert all(len(share) > 0 for share in shares)


def test_a_file_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").touch()
    (tmp_path / "link.pth").symlink_to("a.pth")
    for again in ("a.pth", "./a.pth", str(tmp_path / "a.pth"), "link.pth"):
        with pytest.raises(ConfigError, match=rf"--ckpt: {re.escape(again)} is named twice"):
            checkpoint_files(["a.pth", again], None)
    assert checkpoint_files(["a.pth", "b.pth"], None) == ["a.pth", "b.pth"]


def test_checkpoints_whose_names_meet_have_rows_and_files_of_their_own(project: Project) -> None:
    names = ("a b.pth", "a_b.pth", "模型.pth", "模板.pth")
    for name in names:
        shutil.copy(project.folder / "checkpoint_0.pth", project.folder / name)
    out = run(project, "evaluation.limit=2", ckpt=names, out="names")
    content = json.loads((out / "metrics.json").read_text())
    assert [row["checkpoint"] for row in content["rows"]] == ["a b.pth", "a_b.pth", "模型", "模板"]
    for name, entry in zip(names, content["checkpoints"].values(), strict=True):
        assert entry["path"] == str((project.folder / name).resolve())
        assert load_predictions(out / entry["predictions"]).protocol["checkpoint"] == name
    assert len(list(out.glob("predictions_*.json"))) == 4


def test_results_join_those_of_the_same_protocol_and_replace_no_others(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    def labels(folder: Path) -> list[str]:
        return [row["checkpoint"] for row in json.loads((folder / "metrics.json").read_text())["rows"]]

    both = ("checkpoint_0.pth", "checkpoint_1.pth")
    out = run(project, "evaluation.limit=4", "evaluation.fluency=true", ckpt=both, out="kept")
    before = json.loads((out / "metrics.json").read_text())
    # The command without --ckpt evaluates model.ckpt, here another file.
    shutil.copy(project.folder / "checkpoint_1.pth", project.folder / "stage1.pth")
    run(project, "evaluation.limit=4", "model.ckpt=stage1.pth", ckpt=(), out="kept")
    content = json.loads((out / "metrics.json").read_text())
    assert labels(out) == ["epoch 0", "epoch 1", "stage1"]
    assert content["rows"][:2] == before["rows"] and "fragments" in content["rows"][0]
    assert {key: value for key, value in content["rows"][2].items() if key != "checkpoint"} == {
        key: value for key, value in content["rows"][1].items() if key not in ("checkpoint", "repetition", "fragments")
    }
    assert {item["checkpoint"] for item in content["comparisons"]["differences"]} == {"epoch 1", "stage1"}
    with (out / "per_image_scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 4
    # The same checkpoint again replaces its own row, in its place.
    run(project, "evaluation.limit=4", out="kept")
    assert labels(out) == ["epoch 0", "epoch 1", "stage1"]
    assert not out.with_name("kept-2").exists()
    # Other settings make other scores.
    run(project, "evaluation.limit=3", out="kept")
    assert labels(out) == ["epoch 0", "epoch 1", "stage1"] and labels(out.with_name("kept-2")) == ["epoch 0"]
    assert "images: was 4, is 3" in capsys.readouterr().err


def test_a_failing_merge_leaves_all_that_was_generated(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = Captioning.describe
    monkeypatch.setattr(Captioning, "describe", lambda self, label: [*(found := describe(self, label)), found[0]])
    with pytest.raises(MetricError, match="come twice"):
        run(project, out="unmerged")
    (path,) = (project.folder / "unmerged").iterdir()
    assert len(json.loads(path.read_text())["predictions"]) == 8


def test_each_rank_writes_its_share_before_the_others_are_waited_for(tmp_path: Path) -> None:
    class Lost(Processes):
        def gather(self, value: Any) -> Any:
            raise ProcessLostError("rank 1 ended")

    share = [Prediction("1", "a dog")]
    with pytest.raises(ProcessLostError):
        _collect(
            share,
            Lost(device=torch.device("cpu"), rank=0, world_size=2),
            ["1", "2"],
            tmp_path / "predictions_epoch_0.json",
            {},
        )
    assert load_predictions(tmp_path / "predictions_epoch_0.rank0.json").predictions == share
