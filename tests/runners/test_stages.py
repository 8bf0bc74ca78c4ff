"""Both stages, from shards of scenes to a projection that answers instructions, on the model that ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.config import load_config
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.runners.train import train
from minigpt4.scenes.files import write_shards
from tests.file_server import serving
from tests.launch import launch
from tests.runners.project import REPOSITORY, assert_same_run, logging_restored, untimed_epochs

SHORT = ("run.max_epoch=2", "run.iters_per_epoch=5", "run.save_freq=7", "run.num_workers=0", "run.device=cpu")
SMALL = ("run.batch_size=4", "datasets.laion.shuffle_shards=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with shards of 120 scenes below it."""
    folder = tmp_path_factory.mktemp("stages")
    write_shards(folder / "stage1", scenes=120, per_shard=20, seed=0)
    return folder


def stage1(data: Path, run: str, *options: str, dry_run: bool = False) -> Path:
    """Train with the recipe for scenes; returns the run folder.

    In one thread, so that sums are rounded in the same order.
    """
    shared = (f"paths.output_root={data}", f"run.run_dir={data / run}")
    loaded = load_config(REPOSITORY / "train_configs" / "scenes_stage1.yaml", [*SHORT, *SMALL, *shared, *options])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with logging_restored():
            train(loaded, dry_run=dry_run)
    finally:
        torch.set_num_threads(threads)
    return data / run


@pytest.fixture(scope="module")
def complete(data: Path) -> Path:
    return stage1(data, "complete")


def test_shards_on_a_server_train_to_the_same_weights(data: Path, complete: Path, tmp_path: Path) -> None:
    """With room for the copy of one shard only, so that those of the index are copied again."""
    names = {name: sorted(path.stem for path in data.glob(f"stage1/{name}/*/*.tar")) for name in ("laion", "cc_sbu")}
    with serving(data / "stage1") as server:
        options = []
        for name, stems in names.items():
            options.append(f"datasets.{name}.shards={server.url}/{name}/{name}_dataset/{{{stems[0]}..{stems[-1]}}}.tar")
            options += [f"datasets.{name}.shard_cache={tmp_path}", f"datasets.{name}.shard_cache_gb=0.00001"]
        run = stage1(data, "remote", *options)
        assert len(server.gets()) > sum(map(len, names.values())) > 5
    assert_same_run(run / "checkpoint_1.pth", complete / "checkpoint_1.pth")


def test_it_trains_from_shards(complete: Path) -> None:
    lines = untimed_epochs(complete)
    assert [line["samples_seen"] for line in lines] == [20, 40]
    assert all(line["skipped_images"] == 0 and line["val_loss"] is None for line in lines)
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    identity = read_checkpoint(complete / "checkpoint_1.pth")["run"]["data"]
    assert identity["laion"].startswith("107 samples in 6 shards") and identity["cc_sbu"].startswith("13 samples in 1")


def test_a_dry_run_shows_a_sample_of_each_source(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage1(data, "none", dry_run=True)
    out = capsys.readouterr().out
    assert out.count("[BOS]<ImageHere>*16[[") == 2
    assert "dataset laion:" in out and "dataset cc_sbu:" in out and "120 samples" in out
    assert not (data / "none").exists()


def test_it_resumes_within_an_epoch_to_the_identical_loss(data: Path, complete: Path) -> None:
    folder = data / "resumed"
    folder.mkdir()
    for name in ("checkpoint_last.pth", "log.txt"):
        shutil.copy(complete / name, folder / name)
    assert read_checkpoint(folder / "checkpoint_last.pth")["step"] == 7
    stage1(data, "resumed", f"run.resume_ckpt_path={folder}/checkpoint_last.pth", "run.num_workers=1")
    assert_same_run(folder / "checkpoint_1.pth", complete / "checkpoint_1.pth")
    assert untimed_epochs(folder) == untimed_epochs(complete)


def test_other_shards_are_another_run(data: Path, complete: Path) -> None:
    fewer = f"datasets.laion.shards={data}/stage1/laion/laion_dataset/{{00000..00003}}.tar"
    with pytest.raises(ConfigError, match=r"data: was .*107 samples in 6 shards.*, is .*80 samples in 4 shards"):
        stage1(data, complete.name, f"run.resume_ckpt_path={complete}/checkpoint_0.pth", fewer)


def test_replaced_samples_are_counted(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "stage1", tmp_path / "stage1")
    for shard in (tmp_path / "stage1").rglob("*.tar"):
        content = bytearray(shard.read_bytes())
        start = content.index(b"\xff\xd8\xff")
        content[start : start + 3] = b"bad"
        shard.write_bytes(content)
    folder = stage1(tmp_path, "run", "run.max_epoch=1", "run.iters_per_epoch=30")
    assert untimed_epochs(folder)[0]["skipped_images"] >= 6


def write_stage2(folder: Path) -> Path:
    """The second stage's files as published, with three images."""
    from PIL import Image

    (folder / "cc_sbu_align" / "image").mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    for number in (2, 3, 5):
        Image.new("RGB", (40, 30), (number * 30,) * 3).save(folder / "cc_sbu_align" / "image" / f"{number}.jpg")
        annotations.append({"image_id": str(number), "caption": f"Image number {number}."})
    (folder / "cc_sbu_align" / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return folder


def stage2(data: Path, *options: str, dry_run: bool = False) -> Path:
    """The published recipe of stage 2 with the tiny model in it."""
    phases = [f"datasets.cc_sbu_align.vis_processor.{phase}.image_size=64" for phase in ("train", "eval")]
    tiny = ("model.model_type=tiny", "model.max_txt_len=80", "run.num_workers=0", "run.device=cpu")
    short = ("run.max_epoch=1", "run.iters_per_epoch=2", "run.batch_size=2")
    paths = (f"paths.data_root={data}", f"paths.output_root={data}", f"run.run_dir={data}/stage2")
    file = REPOSITORY / "train_configs" / "minigpt4_stage2_finetune.yaml"
    with logging_restored():
        train(load_config(file, [*phases, *tiny, *short, *paths, *options]), dry_run=dry_run)
    return data / "stage2"


def test_stage_2_starts_from_stage_1(complete: Path, tmp_path: Path) -> None:
    folder = stage2(write_stage2(tmp_path), f"model.ckpt={complete}/checkpoint_1.pth")
    before, after = (read_checkpoint(path) for path in (complete / "checkpoint_1.pth", folder / "checkpoint_0.pth"))
    assert before["metadata"]["prompt_template"] == "{}"
    assert after["metadata"]["prompt_template"] == "###Human: {} ###Assistant: "
    moved = (after["model"]["llama_proj.weight"] - before["model"]["llama_proj.weight"]).abs().max()
    assert 0 < moved < 1e-3  # two small steps from stage 1's projection


def test_a_stage_2_projection_is_refused_in_stage_1(complete: Path, tmp_path: Path, data: Path) -> None:
    folder = stage2(write_stage2(tmp_path), f"model.ckpt={complete}/checkpoint_1.pth")
    with pytest.raises(CheckpointError, match=r"was trained with prompt_template"):
        stage1(data, "back", f"model.ckpt={folder}/checkpoint_0.pth")


def test_stage_2_without_a_checkpoint_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.ckpt: weights/minigpt4_stage1\.pth .*--options model\.ckpt="):
        stage2(write_stage2(tmp_path), dry_run=True)


@pytest.mark.distributed
def test_two_ranks_see_the_same_samples(data: Path, complete: Path, tmp_path: Path) -> None:
    """Rank 0 makes the index, and the other rank waits for it."""
    shutil.copytree(data / "stage1", tmp_path / "stage1", ignore=shutil.ignore_patterns("minigpt4_index"))
    halved = ("run.batch_size=2", f"paths.output_root={tmp_path}")
    command = [str(REPOSITORY / "train.py"), "--cfg-path", str(REPOSITORY / "train_configs" / "scenes_stage1.yaml")]
    done = launch(*command, "--options", *SHORT, *SMALL, *halved, f"run.run_dir={tmp_path}/run", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for alone, shared in zip(untimed_epochs(complete), untimed_epochs(tmp_path / "run"), strict=True):
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
