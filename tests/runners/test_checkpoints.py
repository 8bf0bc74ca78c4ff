"""The files of a run; a resumed run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common import files
from minigpt4.common.checkpoint import read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError, DataError
from minigpt4.common.schema import RunConfig
from minigpt4.runners.checkpoints import (
    RESUME_KEYS,
    check_same_run,
    find_resume_point,
    latest_valid_checkpoint,
)
from minigpt4.runners.run_folder import check_run_folder, open_run_folder
from tests.runners.conftest import LONG
from tests.runners.project import (
    Project,
    assert_same_run,
    logs_step,
    printed_losses,
    read_epochs,
    untimed_epochs,
)

Train = Callable[..., Path]
SHORT = ("run.iters_per_epoch=5", "run.save_freq=4", "model.precision=float32")


@pytest.fixture(scope="module")
def complete(project: Project) -> Path:
    """An uninterrupted run of two epochs, with a checkpoint in the middle of the second."""
    return project.train_here(*SHORT, "run.run_dir=complete")


@pytest.mark.parametrize(("name", "step"), [("checkpoint_0.pth", 5), ("checkpoint_last.pth", 8)])
def test_resume_at_the_end_and_in_the_middle_of_an_epoch(
    complete: Path, train_here: Train, project: Project, name: str, step: int
) -> None:
    folder = project.folder / f"resumed_at_{step}"
    folder.mkdir()
    shutil.copy(complete / name, folder / name)
    shutil.copy(complete / "log.txt", folder / "log.txt")  # its second line is written again, not twice
    assert read_checkpoint(folder / name)["step"] == step

    train_here(*SHORT, f"run.resume_ckpt_path={folder.name}/{name}", "run.log_freq=3", "run.num_workers=1")

    assert_same_run(folder / "checkpoint_1.pth", complete / "checkpoint_1.pth")
    assert untimed_epochs(folder) == untimed_epochs(complete)


def test_auto_skips_a_truncated_checkpoint(complete: Path, train_here: Train, project: Project) -> None:
    folder = project.folder / "truncated"
    folder.mkdir()
    shutil.copy(complete / "checkpoint_0.pth", folder)
    for name in ("checkpoint_1.pth", "checkpoint_last.pth"):
        (folder / name).write_bytes((complete / name).read_bytes()[:-1000])

    train_here(*SHORT, "run.run_dir=truncated", "run.resume_ckpt_path=auto")

    assert_same_run(folder / "checkpoint_1.pth", complete / "checkpoint_1.pth")


def test_broken_checkpoints_are_named(complete: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest_valid_checkpoint(tmp_path) is None
    shutil.copy(complete / "checkpoint_0.pth", tmp_path)
    (tmp_path / "checkpoint_1.pth").write_bytes((complete / "checkpoint_1.pth").read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_0.pth"
    assert "checkpoint_1.pth is truncated" in caplog.text
    (tmp_path / "checkpoint_0.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid \(2 tried\)"):
        latest_valid_checkpoint(tmp_path)


def test_a_checkpoint_with_a_damaged_middle_is_named_and_the_one_before_is_taken(
    complete: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("checkpoint_0.pth", "checkpoint_1.pth"):
        shutil.copy(complete / name, tmp_path)
    path = tmp_path / "checkpoint_1.pth"
    weight = read_checkpoint(path)["model"]["llama_proj.weight"]
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(weight.numpy().tobytes())] ^= 1  # torch itself reads it without a word
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_0.pth"
    assert "checkpoint_1.pth is damaged (wrong checksum of" in caplog.text


def test_a_finished_run_says_so(complete: Path, train_here: Train) -> None:
    before = (complete / "checkpoint_1.pth").stat().st_mtime_ns
    train_here(*SHORT, "run.run_dir=complete", "run.resume_ckpt_path=auto")
    assert (complete / "checkpoint_1.pth").stat().st_mtime_ns == before
    assert "all 2 epochs are done already; raise run.max_epoch" in (complete / "train.log").read_text()


def test_auto_without_a_checkpoint_starts_from_the_beginning(
    train_here: Train, complete: Path, project: Project
) -> None:
    folder = project.folder / "fresh"
    folder.mkdir()
    shutil.copy(complete / "log.txt", folder)  # as if an attempt had been killed while it wrote its first checkpoint
    (folder / ".checkpoint_0.pth.x1y2z3.tmp").write_bytes(b"PK")
    train_here(*SHORT, "run.run_dir=fresh", "run.resume_ckpt_path=auto")
    assert_same_run(folder / "checkpoint_1.pth", complete / "checkpoint_1.pth")
    assert untimed_epochs(folder) == untimed_epochs(complete)
    assert not list(folder.glob(".checkpoint*"))


def test_another_run_is_refused_with_every_key(complete: Path, train_here: Train) -> None:
    changes = ("run.init_lr=2e-3", "run.seed=7", "run.batch_size=2")
    with pytest.raises(ConfigError) as caught:
        train_here(*SHORT, *changes, "run.resume_ckpt_path=complete/checkpoint_0.pth")
    message = str(caught.value)
    assert "run.init_lr: was 0.001, is 0.002" in message
    assert "run.seed: was 42, is 7" in message
    assert "global_batch: was 4, is 2, on any number of processes with run.global_batch=4" in message
    assert "model.ckpt=" in message


def identity(data: str = "24 records, abc", **config: Mapping[str, Any]) -> dict[str, Any]:
    run = {"steps_per_epoch": 5, "global_batch": 4, "data": {"birds": data}}
    return {"config": config, "run": run}


def test_differences_are_ignored_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    saved = identity(run={"num_workers": 4, "max_epoch": 2, "seed": 1, "batch_size": 4}, paths={"data_root": "x"})
    changed = {"num_workers": 0, "max_epoch": 3, "seed": 1, "batch_size": 2, "keep_checkpoints": 5}
    with caplog.at_level(logging.WARNING):
        check_same_run(saved, identity(run=changed, paths={"data_root": "y"}), Path("c.pth"))
    assert "run.max_epoch: was 2, is 3" in caplog.text
    assert "run.batch_size: was 4, is 2" in caplog.text
    assert "num_workers" not in caplog.text and "keep" not in caplog.text
    with pytest.raises(ConfigError, match=r"data: was .*abc.*, is .*def"):
        check_same_run(saved, identity(data="24 records, def"), Path("c.pth"))
    saved = identity(run={"seed": 1})
    with pytest.raises(ConfigError, match=r"\(run\.seed: was 1, is 2\); set these back"):
        check_same_run(saved, identity(run={"seed": 2}), Path("c.pth"))


def test_batch_sizes_where_older_checkpoints_have_them(caplog: pytest.LogCaptureFixture) -> None:
    old = {"batch_size": 4, "eval_batch_size": 3, "reader": "none"}
    saved = identity(run={"seed": 1}, datasets={"birds": old}, curation={"pictures": 5000})
    now = identity(run={"seed": 1, "batch_size": 4}, datasets={"birds": {"reader": None}}, curation={"images": 5000})
    check_same_run(saved, now, Path("c.pth"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("amp", "precision", "now"),
    [("auto", "auto", "auto"), ("bf16", "auto", "bfloat16"), ("bf16", "float16", "float16")],
)
def test_number_formats_where_older_checkpoints_have_them(
    amp: str, precision: str, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved = identity(run={"amp": amp}, model={"precision": precision}, evaluation={"precision": "float32"})
    check_same_run(saved, identity(run={}, model={"precision": now}, evaluation={}), Path("c.pth"))
    assert not caplog.records
    check_same_run(saved, identity(run={}, model={"precision": "float32"}, evaluation={}), Path("c.pth"))
    assert f"model.precision: was '{now}', is 'float32'" in caplog.text


def test_weights_alone_and_auto_without_a_folder_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "published.pth", {"model": {}, "optimizer": {}, "config": {}, "epoch": 4})
    with pytest.raises(CheckpointError, match=r"not the state of a run.*model\.ckpt="):
        find_resume_point(RunConfig(resume_ckpt_path=str(tmp_path / "published.pth")), identity())
    with pytest.raises(ConfigError, match=r"auto looks into run\.run_dir"):
        find_resume_point(RunConfig(resume_ckpt_path="auto"), identity())


def test_a_folder_that_would_mix_two_runs_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint_0.pth", dict.fromkeys(RESUME_KEYS, 0) | identity())
    with pytest.raises(ConfigError, match=r"checkpoints of an earlier run.*interrupted.*resume_ckpt_path=auto"):
        find_resume_point(RunConfig(run_dir=str(tmp_path)), identity())
    named = RunConfig(run_dir=str(tmp_path / "other"), resume_ckpt_path=str(tmp_path / "checkpoint_0.pth"))
    with pytest.raises(ConfigError, match=r"leave run\.run_dir out"):
        find_resume_point(named, identity())
    for run in (RunConfig(run_dir=str(tmp_path), resume_ckpt_path="auto"), RunConfig(run_dir=str(tmp_path / "new"))):
        find_resume_point(run, identity())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"run\.run_dir: the folder .*: {tmp_path / 'file'} is no folder"):
        check_run_folder(RunConfig(run_dir=str(tmp_path / "file" / "run")))
    check_run_folder(RunConfig(run_dir=str(tmp_path / "new" / "run")))
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=rf"run\.output_dir: .* nothing may be written into {tmp_path}; name another"):
        check_run_folder(RunConfig(output_dir=str(tmp_path / "out"), job_name="job"))


def test_restarted_workers_need_a_folder_to_find_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [RunConfig(), RunConfig(run_dir="here"), RunConfig(run_dir="here", resume_ckpt_path="here/checkpoint_0.pth")]
    for run in runs:
        check_run_folder(run)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for run in runs:
        with pytest.raises(ConfigError, match=r"set --options run\.run_dir=FOLDER run\.resume_ckpt_path=auto"):
            check_run_folder(run)
    check_run_folder(RunConfig(run_dir="here", resume_ckpt_path="auto"))


def test_run_folders_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Noon:
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr(files, "datetime", Noon)
    run = RunConfig(output_dir=str(tmp_path), job_name="job")
    folders = [open_run_folder(run, {}, ExitStack()) for _ in range(3)]
    assert [f.relative_to(tmp_path).as_posix() for f in folders] == [
        "job/20260102-120000",
        "job/20260102-120000-2",
        "job/20260102-120000-3",
    ]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"set run\.output_dir or run\.run_dir"):
        open_run_folder(RunConfig(run_dir=str(tmp_path / "file" / "run")), {}, ExitStack())


def test_a_second_run_leaves_the_folder_of_the_first_alone(tmp_path: Path) -> None:
    run = RunConfig(run_dir=str(tmp_path))
    with ExitStack() as first:
        open_run_folder(run, {"run": "first"}, first)
        (tmp_path / "log.txt").write_text("an epoch\n")
        with pytest.raises(DataError, match=r"another command \(process \d+ on .*\) is writing to"):
            open_run_folder(run, {"run": "second"}, ExitStack())
        (tmp_path / "checkpoint_0.pth").touch()
    # The second one found no checkpoint when it looked; the first has ended before it opens the folder.
    with pytest.raises(ConfigError, match="holds the checkpoints of an earlier run"):
        open_run_folder(run, {"run": "second"}, ExitStack())
    assert (tmp_path / "config.yaml").read_text() == "run: first\n"
    assert (tmp_path / "log.txt").read_text() == "an epoch\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_is_resumed(project: Project, uninterrupted: Path, number: signal.Signals) -> None:
    run = f"killed_by_{number.name}"
    options = (f"run.run_dir={run}", *LONG, "run.num_workers=1", "run.save_freq=7")
    with project.start(*options) as process:
        printed = process.read_until(logs_step(18))
        os.kill(process.pid, number)
        status, rest = process.finish()
    printed += rest
    if number is signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
        assert f"resume with --options run.resume_ckpt_path={run}/checkpoint_last.pth" in printed
    else:
        assert status == -signal.SIGKILL
    folder = project.folder / run
    assert not (folder / "checkpoint_1.pth").exists()
    assert "Traceback" not in printed

    project.train_here(*options, "run.resume_ckpt_path=auto")
    assert_same_run(folder / "checkpoint_1.pth", uninterrupted / "checkpoint_1.pth")
    logs = [(run_folder / "train.log").read_text() for run_folder in (folder, uninterrupted)]
    assert printed_losses(logs[0]) == printed_losses(logs[1])
    assert untimed_epochs(folder) == untimed_epochs(uninterrupted)
    assert len(read_epochs(folder)) == 2


@pytest.mark.slow
def test_a_killed_run_with_adapters_is_resumed(project: Project) -> None:
    adapters = ("model.lora.r=2", "model.lora.dropout=0.3")  # random numbers in every micro-batch
    options = (*LONG, *adapters, "run.iters_per_epoch=20", "run.num_workers=1", "run.save_freq=7")
    whole = project.train_here(*options, "run.run_dir=undisturbed_adapters")
    killed = (*options, "run.run_dir=killed_adapters", "run.resume_ckpt_path=auto")
    with project.start(*killed) as process:
        process.read_until(logs_step(9))
        os.kill(process.pid, signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
    saved = read_checkpoint(project.folder / "killed_adapters" / "checkpoint_last.pth")
    assert saved["step"] == 7 and any(".lora_" in name for name in saved["model"])
    assert_same_run(project.train_here(*killed) / "checkpoint_1.pth", whole / "checkpoint_1.pth")
