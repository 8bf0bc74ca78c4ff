"""Evaluation by questions, from annotations to the report: tasks, splits, processes, and what survives a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.config import load_config
from minigpt4.common.errors import DataError, MetricError, MissingSplitError
from minigpt4.evaluation import questions
from minigpt4.evaluation.predictions import load_predictions
from minigpt4.evaluation.results import WrittenResults
from minigpt4.runners.evaluate import evaluate
from tests.datasets.public_layouts import CARDS
from tests.launch import launch
from tests.runners.project import REPOSITORY, Project

OPTIONS = (
    "evaluation.generation.max_new_tokens=8",
    "evaluation.batch_size=2",
    "evaluation.num_workers=0",
    "model.ckpt=null",
)
CHECKPOINT = str(REPOSITORY / "tests" / "fixtures" / "parity_a" / "minigpt4.pth")
IMAGES = [f"image_{number}.png" for number in range(6)]


def rows() -> list[dict[str, Any]]:
    """Two questions about each image: one of ten people's answers, one of one."""
    found = []
    for number, image in enumerate(IMAGES):
        people = ["red"] * 9 + ["blue"]
        split = "test" if number < 4 else "val"
        found.append({"id": f"{number}-colour", "image": image, "question": "Which colour?", "answers": people})
        found.append({"id": f"{number}-count", "image": image, "question": "How many?", "answers": ["two"] * 10})
        found[-2] |= {"kind": "colour", "split": split}
        found[-1] |= {"kind": "count", "split": split}
    return found


def box_rows(split: str) -> list[dict[str, Any]]:
    box = {"box": [0.1, 0.2, 0.5, 0.75], "label": "square"}
    return [
        {"id": f"{n}", "image": image, "question": f"[refer] thing {n}", "answer": "?", "boxes": [box], "split": split}
        for n, image in enumerate(IMAGES)
    ]


def write_rows(path: Path, listed: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in listed))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("questions"), train=6, val=1)
    write_rows(project.folder / "vqa.jsonl", rows())
    write_rows(
        project.folder / "one.jsonl",
        box_rows("val") + [row | {"id": "a", "split": "testA"} for row in box_rows("")[:1]],
    )
    write_rows(project.folder / "two.jsonl", box_rows("val")[:3])
    config = json.dumps(
        {
            "model": {"model_type": "card.yaml"},
            "run": {"device": "cpu"},
            "datasets": {name: {"reader": "jsonl", "annotations": f"{name}.jsonl"} for name in ("vqa", "one", "two")},
        }
    )
    (project.folder / "questions.yaml").write_text(config)
    return project


@pytest.fixture(autouse=True)
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)


def run(out: str, task: str, *options: str) -> list[WrittenResults]:
    listed = [*OPTIONS, f"evaluation.task={task}", f"evaluation.output_dir={out}", *options]
    return evaluate(load_config("questions.yaml", listed).config, [CHECKPOINT])


def answer_by(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """Let the model say what stands beside a part of the question, instead of what it generates."""
    from minigpt4.models.generation import Answer
    from minigpt4.models.minigpt4 import MiniGPT4

    def generate(self: MiniGPT4, prompts: Any, *_: Any, **__: Any) -> list[Answer]:
        asked = [self.encoder.tokenizer.decode([token for token in prompt if token >= 0]) for prompt in prompts]
        return [Answer(next(said for part, said in answers.items() if part in text), ()) for text in asked]

    monkeypatch.setattr(MiniGPT4, "generate", generate)


def test_questions_are_scored_by_kind(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_by(monkeypatch, {"colour": "Blue.", "many": "2"})
    (written,) = run("vqa", "vqa", "evaluation.dataset=vqa")
    content = json.loads(written.metrics.read_text())
    (row,) = content["rows"]
    assert row == {"checkpoint": "minigpt4"} | dict.fromkeys(("accuracy", "accuracy_shuffled"), pytest.approx(0.65))
    kinds = content["kinds"]["minigpt4"]
    assert kinds["colour"] == {"questions": 4, "accuracy": pytest.approx(0.3), "accuracy_shuffled": pytest.approx(0.3)}
    assert kinds["count"]["accuracy"] == 1
    protocol = content["protocol"]
    assert (protocol["task"], protocol["images"], protocol["metrics"]) == ("vqa", 8, ["soft"])
    assert content["intervals_95"]["minigpt4"]["accuracy"][0] < 0.65
    assert "over the questions" in content["intervals_95_note"]
    report = written.report.read_text()
    assert "Accuracy by kind of question" in report and "Which colour? <span>colour</span>" in report
    assert "red × 9" in report and "<h2>Questions</h2>" in report


def test_several_datasets_and_splits_in_one_call(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_by(monkeypatch, {"thing 0": "{<10><20><50><75>}", "thing 1": "here", "thing": "{<60><60><90><90>}"})
    results = run("refs", "refer", "evaluation.dataset=one,two", "evaluation.split=val,testA")
    assert [written.metrics.parent.name for written in results] == ["one_val", "one_testA", "two_val"]
    assert "left out: " in capsys.readouterr().err  # two has no testA
    scores = [json.loads(written.metrics.read_text())["rows"][0] for written in results]
    assert [score["IoU_50"] for score in scores] == pytest.approx([1 / 6, 1, 1 / 3])
    assert [score["unreadable"] for score in scores] == pytest.approx([1 / 6, 0, 1 / 3])
    report = results[0].report.read_text()
    assert report.count('<rect class="true"') >= 6 and '<rect class="found"' in report
    predictions = load_predictions(results[0].metrics.parent / "predictions_minigpt4.json")
    assert json.loads(predictions.predictions[0].references[0]) == {"box": [0.1, 0.2, 0.5, 0.75], "label": "square"}
    with pytest.raises(MissingSplitError, match="there is no split 'testB'"):
        run("none", "refer", "evaluation.dataset=one,two", "evaluation.split=val,testB")


def test_the_published_sets_of_questions(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of MiniGPT-v2's table, by the shipped file, each with the scorer that fits it."""
    for name in ("vizwiz", "iconvqa", "vsr", "hateful_memes"):
        CARDS[name](tmp_path)
    answer_by(monkeypatch, {"unanswerable if": "Soup can.", "hateful?": "No", "true or false": "True."})
    options = [*OPTIONS, f"paths.data_root={tmp_path}", "run.device=cpu", "evaluation.output_dir=published"]
    options += ["datasets.memes.card=hateful_memes", "datasets.memes.reader=hateful_memes_choices"]
    options += ["model.arch=minigpt4", "model.model_type=card.yaml"]
    options += ["evaluation.dataset=vizwiz,iconvqa,vsr,hateful_memes,memes"]
    cfg = load_config(REPOSITORY / "eval_configs" / "minigptv2_vqa.yaml", options).config
    contents = [json.loads(written.metrics.read_text()) for written in evaluate(cfg, [CHECKPOINT])]
    scorers = [scorer for content in contents for scorer in content["protocol"]["metrics"]]
    assert scorers == ["soft", "choice", "exact", "yes_no", "choice"]
    assert [content["protocol"]["images"] for content in contents] == [5, 1, 5, 5, 5]
    vizwiz, iconvqa, vsr, hateful_memes, by_likelihood = (content["rows"][0] for content in contents)
    assert [row["accuracy"] for row in (vizwiz, vsr, hateful_memes)] == pytest.approx([1, 2 / 5, 2 / 5])
    assert contents[2]["kinds"]["minigpt4"]["Topological"] == {"questions": 1, "accuracy": 1, "accuracy_shuffled": 1}
    assert 0 <= by_likelihood["AUROC"] <= 1 and "AUROC" not in iconvqa | hateful_memes


def test_detection(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_by(monkeypatch, {"thing 0": "<p>square</p> {<10><20><50><75>}", "thing": ""})
    (written,) = run("detected", "detection", "evaluation.dataset=two", "evaluation.split=val")
    (row,) = json.loads(written.metrics.read_text())["rows"]
    # One box of three is found, so precision is 1 up to a recall of a third: 34 of COCO's 101 points.
    assert [row["AP50"], row["AP"]] == pytest.approx([34 / 101] * 2) and row["box_F1"] == pytest.approx(1 / 3)
    assert row["unreadable"] == pytest.approx(2 / 3) and row["AP50_shuffled"] == pytest.approx(row["AP50"])


def test_answers_survive_a_scorer_that_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug")

    answer_by(monkeypatch, {"colour": "red", "many": "x"})
    with monkeypatch.context() as broken:
        broken.setitem(questions.SCORERS, "soft", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            run("failed", "vqa", "evaluation.dataset=vqa", "evaluation.split=test,val")
    saved = [project.folder / "failed" / f"vqa_{split}" / "predictions_minigpt4.json" for split in ("test", "val")]
    assert [len(load_predictions(path).predictions) for path in saved] == [8, 4]  # all splits are answered first
    questions.main(["--preds", str(saved[0]), "--out", "scores.json"])
    assert json.loads(Path("scores.json").read_text())["rows"][0]["accuracy"] == pytest.approx(0.5)
    assert "50.0 %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        questions.main(["--preds", str(saved[0]), "--out", str(saved[0])])
    # The same answers again are scored in the same folder.
    (written,) = run("failed/vqa_test", "vqa", "evaluation.dataset=vqa")
    assert written.metrics.parent.name == "vqa_test"


@pytest.mark.distributed
def test_two_processes_write_the_same_files_as_one(project: Project) -> None:
    (written,) = run("one", "vqa", "evaluation.dataset=vqa", "evaluation.scorer=exact")
    script = str(REPOSITORY / "eval_scripts" / "eval_vqa.py")
    arguments = ["--cfg-path", "questions.yaml", "--ckpt", CHECKPOINT, "--out", "two", "--scorer", "exact"]
    done = launch(script, *arguments, "--dataset", "vqa", "--options", *OPTIONS, ranks=2, cwd=project.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    files = []
    for folder in (written.metrics.parent, project.folder / "two"):
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
        metrics = json.loads(files[-1]["metrics.json"])
        del metrics["made"]
        files[-1]["metrics.json"] = json.dumps(metrics).encode()
        report = files[-1]["report.html"].decode().splitlines()
        files[-1]["report.html"] = "\n".join(line for line in report if 'id="made"' not in line).encode()
    assert files[0] == files[1] and len(files[0]) == 6
    answers = load_predictions(project.folder / "two" / "predictions_minigpt4.json").predictions
    assert [item.image_id for item in answers] == [row["id"] for row in rows() if row["split"] == "test"]
    assert len({item.extra["shuffled"] for item in answers}) > 1
    assert "Accuracy by kind of question" in done.stdout


def test_unreadable_images_lose_all_their_questions(project: Project) -> None:
    good = (project.folder / IMAGES[0]).read_bytes()
    try:
        (project.folder / IMAGES[0]).write_bytes(good[:40])
        (written,) = run("broken", "vqa", "evaluation.dataset=vqa")
    finally:
        (project.folder / IMAGES[0]).write_bytes(good)
    protocol = json.loads(written.metrics.read_text())["protocol"]
    assert protocol["images"] == 6 and IMAGES[0] in protocol["notes"]["pictures_left_out"][0]


@pytest.mark.parametrize(
    ("task", "options", "error", "words"),
    [
        ("refer", ["evaluation.dataset=vqa"], DataError, "needs one true box .* has none; give 'boxes'"),
        ("detection", ["evaluation.dataset=vqa"], DataError, "no record has a true box"),
        ("vqa", ["evaluation.dataset=vqa", "evaluation.scorer=choice"], DataError, "line 1: .* has no 'choices'"),
        ("vqa", ["evaluation.dataset=vqa", "evaluation.scorer=yes_no"], DataError, "line 1: .* the answer is 'red'"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_before_a_model_is_loaded(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    options: list[str],
    error: type[Exception],
    words: str,
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("minigpt4.runners.evaluate._load_model", fail)
    with pytest.raises(error, match=words):
        run("refused", task, *options)


def test_captions_are_compared_with_the_objects_of_their_images(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [{"image": image, "boxes": [{"label": "dog" if n % 2 else "cat"}]} for n, image in enumerate(IMAGES)]
    write_rows(project.folder / "objects.jsonl", boxes)
    listed = [{"image": image, "answer": "a dog", "split": "test"} for image in IMAGES]
    write_rows(project.folder / "captions.jsonl", listed)
    answer_by(monkeypatch, {"": "Two dogs"})
    options = ("evaluation.dataset=vqa", "datasets.vqa.annotations=captions.jsonl", "evaluation.objects=objects.jsonl")
    (written,) = run("captions", "caption", *options)
    (row,) = json.loads(written.metrics.read_text())["rows"]
    assert (row["CHAIR_i"], row["CHAIR_s"], row["object_recall"]) == (0.5, 0.5, 0.5)
    assert row["CHAIR_i_shuffled"] == 0.5
    write_rows(project.folder / "objects.jsonl", boxes[1:])
    with pytest.raises(MetricError, match=r"objects.jsonl does not have the image image_0.png"):
        run("captions", "caption", *options)
