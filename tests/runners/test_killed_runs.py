"""A run that is killed at any of its writes, and resumed, leaves the files of an undisturbed run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import RunConfig
from minigpt4.common.types import Batch, Sample
from minigpt4.datasets import loaders
from minigpt4.runners import checkpoints, run_folder
from minigpt4.runners.checkpoints import (
    latest_valid_checkpoint,
    restore_derived_files,
    save,
    save_epoch,
)
from minigpt4.runners.run_folder import open_run_folder
from tests.runners.project import Project, assert_same, assert_same_run, untimed_epochs

Train = Callable[..., Path]
SHORT = ("run.iters_per_epoch=3", "run.save_freq=2", "model.precision=float32")
AUTO = "run.resume_ckpt_path=auto"


class Killed(BaseException):
    """The end of a process, which no handler expects."""


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> Path:
    return project.train_here(*SHORT, "run.run_dir=undisturbed")


class Killer:
    """Ends the process at its n-th write: a file's temporary file stays, an appended line is torn.

    Attributes:
        writes: writes seen.
        at: write to be killed at.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = 0
        self.at = 0
        replace, append = Path.replace, checkpoints.append_epoch

        def killed_replace(temporary: Path, target: Path) -> Path:
            if self._is_now():
                shutil.copy(temporary, temporary.with_name(f".{Path(target).name}.killed.tmp"))
                raise Killed
            return replace(temporary, target)

        def killed_append(file: Path, values: Any) -> None:
            if self._is_now():
                with file.open("a") as stream:
                    stream.write('{"epoch": 0, "st')
                raise Killed
            append(file, values)

        monkeypatch.setattr(Path, "replace", killed_replace)
        monkeypatch.setattr(checkpoints, "append_epoch", killed_append)

    def _is_now(self) -> bool:
        self.writes += 1
        return self.writes == self.at

    def survives(self, at: int, train: Callable[[], object]) -> bool:
        """Run `train`, killed at write `at`; whether it ended before."""
        self.writes, self.at = 0, at
        try:
            train()
        except Killed:
            return False
        return True


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


def assert_same_folder(folder: Path, expected: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))
    for path in expected.glob("checkpoint_*.pth"):
        assert_same_run(folder / path.name, path)
    for path in expected.glob("*.safetensors"):
        with safe_open(folder / path.name, "pt") as one, safe_open(path, "pt") as two:
            assert one.metadata() == two.metadata(), path.name
            assert_same({k: one.get_tensor(k) for k in one.keys()}, {k: two.get_tensor(k) for k in two.keys()})  # noqa: SIM118
    assert untimed_epochs(folder) == untimed_epochs(expected)
    assert (folder / "log.txt").read_bytes().endswith(b"}\n")


def test_killed_again_and_again(project: Project, undisturbed: Path, killer: Killer) -> None:
    options = (*SHORT, "run.run_dir=killed_again", AUTO)
    for at in itertools.count(2):
        if killer.survives(at, lambda: project.train_here(*options)):
            break
    assert_same_folder(project.folder / "killed_again", undisturbed)
    assert at > 4


def write_mixed(folder: Path) -> list[str]:
    """Options for three datasets: with one image, with several and conversations, and without any."""
    mark = "<Img><ImageHere></Img>"
    turns = [{"question": f"Is {mark} red?", "answer": "no"}, {"question": f"And {mark}?", "answer": "it is blue"}]
    two = [{"images": [f"image_{n}.png", f"image_{n + 1}.png"], "id": str(n), "conversation": turns} for n in range(7)]
    none = [{"images": [], "id": f"t{n}", "question": f"Say {n}.", "answers": ["old", "red"]} for n in range(5)]
    options = ["datasets.shapes.sample_ratio=1"]
    for name, rows in (("two", two), ("none", none)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options += [f"datasets.{name}.reader=jsonl", f"datasets.{name}.annotations={name}.jsonl"]
    return [*options, "run.batch_size=6", "run.valid_splits=[]"]


def test_a_killed_run_on_one_image_several_and_none(
    project: Project, killer: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[set[int]] = []
    collate = loaders.collate

    def counting(samples: Sequence[Sample], **options: Any) -> Batch:
        counts.append({len(sample.images) for sample in samples})
        return collate(samples, **options)

    monkeypatch.setattr(loaders, "collate", counting)
    options = (*SHORT, *write_mixed(project.folder))
    whole = project.train_here(*options, "run.run_dir=mixed_whole")
    assert len(counts) == 6 and all(batch == {0, 1, 2} for batch in counts)
    resumed = (*options, "run.run_dir=mixed_killed", AUTO)
    # Within the second epoch, after the checkpoint of its second step.
    assert not killer.survives(8, lambda: project.train_here(*resumed))
    assert (project.folder / "mixed_killed" / "checkpoint_0.pth").exists()
    killer.at = 0
    project.train_here(*resumed)
    assert_same_folder(project.folder / "mixed_killed", whole)


def test_a_run_killed_before_its_first_checkpoint_starts_again_without_resume(
    project: Project, undisturbed: Path, killer: Killer
) -> None:
    options = (*SHORT, "run.save_freq=null", "run.run_dir=started_again")
    folder = project.folder / "started_again"
    assert not killer.survives(2, lambda: project.train_here(*options))
    shutil.copy(undisturbed / "log.txt", folder)
    assert list(folder.glob(".checkpoint_0.pth.*"))
    killer.at = 0
    project.train_here(*options)
    assert untimed_epochs(folder) == untimed_epochs(undisturbed)
    assert not list(folder.glob(".*"))


def save_six_epochs(folder: Path, template: dict[str, Any], best: int) -> dict[str, Any]:
    """The files of a run of which three checkpoints are kept, and its last checkpoint; epoch `best` is the best."""
    for epoch in range(6):
        content = template | {"epoch": epoch, "progress": template["progress"] | {"best_epoch": min(epoch, best)}}
        save_epoch(folder, content, {"epoch": epoch, "step": epoch}, keep=3)
    return content


def kept(folder: Path) -> str:
    assert {path.stem for path in folder.glob("*.pth")} == {path.stem for path in folder.glob("*.safetensors")}
    return " ".join(sorted(path.stem.removeprefix("checkpoint_") for path in folder.glob("*.pth")))


@pytest.mark.parametrize(("best", "expected"), [(1, "1 3 4 5 best"), (4, "3 4 5 best")])
def test_old_checkpoints_are_deleted(undisturbed: Path, tmp_path: Path, best: int, expected: str) -> None:
    template = read_checkpoint(undisturbed / "checkpoint_1.pth")
    content = save_six_epochs(tmp_path, template, best)
    assert kept(tmp_path) == expected
    assert read_checkpoint(tmp_path / "checkpoint_best.pth")["epoch"] == best
    restore_derived_files(tmp_path / "checkpoint_5.pth", content, [], keep=1)
    assert kept(tmp_path) == ("1 5 best" if best == 1 else "4 5 best")


def test_the_best_checkpoint_of_an_abandoned_attempt_is_replaced(
    undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = read_checkpoint(undisturbed / "checkpoint_1.pth")
    best = tmp_path / "checkpoint_best.pth"
    for epoch in range(6):
        content = template | {"epoch": epoch, "progress": template["progress"] | {"best_epoch": epoch}}
        save(tmp_path, f"checkpoint_{epoch}.pth", content)
    save(tmp_path, "checkpoint_best.pth", content)  # epoch 5's
    third = template | {"epoch": 3, "progress": template["progress"] | {"best_epoch": 1}}
    restore_derived_files(tmp_path / "checkpoint_3.pth", third, [], keep=None)
    assert read_checkpoint(best)["epoch"] == 1

    save(tmp_path, "checkpoint_best.pth", content)
    (tmp_path / "checkpoint_1.pth").unlink()
    restore_derived_files(tmp_path / "checkpoint_3.pth", third, [], keep=None)
    assert not best.exists() and not best.with_suffix(".safetensors").exists()
    assert read_checkpoint(tmp_path / "abandoned_checkpoint_best.pth")["epoch"] == 5
    assert "is not of this run's best epoch so far" in caplog.text


def test_a_run_killed_while_it_deletes_goes_on_deleting(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    template = read_checkpoint(undisturbed / "checkpoint_1.pth")
    unlink = Path.unlink

    def killed_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name.startswith("checkpoint_"):
            raise Killed

    def forbidden_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("checkpoint_"):
            raise PermissionError("denied")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killed_unlink)
        save_six_epochs(tmp_path, template, 5)
    left = template | {"epoch": 3, "progress": template["progress"] | {"best_epoch": 3}}
    with monkeypatch.context() as patch:  # a folder in which nothing may be deleted
        patch.setattr(Path, "unlink", forbidden_unlink)
        restore_derived_files(tmp_path / "checkpoint_3.pth", left, [], keep=3)
    assert "checkpoint_0" in caplog.text and "cannot be deleted: denied" in caplog.text
    restore_derived_files(tmp_path / "checkpoint_3.pth", left, [], keep=3)
    assert kept(tmp_path) == "1 2 3 best"


def test_log_txt_is_complete_after_a_resume_from_an_early_checkpoint(
    project: Project, undisturbed: Path, killer: Killer
) -> None:
    """The run, killed within epoch 1, is resumed from the checkpoint of epoch 1 that an earlier attempt wrote."""
    folder = project.folder / "early"
    shutil.copytree(undisturbed, folder)
    start = "run.resume_ckpt_path=early/checkpoint_0.pth"
    # After config.yaml, checkpoint_0.safetensors, checkpoint_best.pth and .safetensors, and log.txt.
    assert not killer.survives(6, lambda: project.train_here(*SHORT, start))
    assert list(folder.glob(".checkpoint_last.pth.*"))
    assert len(untimed_epochs(folder)) == 1
    killer.at = 0
    project.train_here(*SHORT, "run.run_dir=early", AUTO)
    assert_same_folder(folder, undisturbed)


def test_the_latest_checkpoint_is_that_of_the_latest_step(undisturbed: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["checkpoint_1.pth", "checkpoint_last.pth", "checkpoint_0.pth"]):
        shutil.copy(undisturbed / name, tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_1.pth"
    shutil.copy(undisturbed / "checkpoint_1.pth", tmp_path / "checkpoint_best.pth")
    shutil.copy(undisturbed / "checkpoint_1.pth", tmp_path / "checkpoint_zcopy.pth")
    assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_1.pth"
    (tmp_path / "checkpoint_1.pth").unlink()
    (tmp_path / "checkpoint_zcopy.pth").unlink()
    assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_best.pth"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("write_checkpoint", OSError(28, "No space left on device")),
        ("write_checkpoint", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")),
        ("write_safetensors", OSError(30, "Read-only file system")),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, function, fail)
    with pytest.raises(CheckpointError, match=r"checkpoint_0\.pth cannot be written \(.*\); free space") as caught:
        save(tmp_path, "checkpoint_0.pth", {"model": {}, "metadata": {}})
    assert "\n" not in str(caught.value)


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_text", fail)
    with pytest.raises(ConfigError, match=r"No space left on device; set run\.output_dir or run\.run_dir"):
        open_run_folder(RunConfig(run_dir=str(tmp_path)), {}, ExitStack())
