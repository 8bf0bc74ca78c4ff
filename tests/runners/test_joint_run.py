"""Descriptions, detection and tables in one run by ratio, on the model that ships."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.config import LoadedConfig, load_config
from minigpt4.common.files import asset
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.loaders import train_loader
from minigpt4.models.loading import build_prompt_encoder
from minigpt4.runners.train import train
from tests.runners.joint_data import COLOURS, RATIOS, write_joint
from tests.runners.project import REPOSITORY, logging_restored, read_epochs

RECIPE = REPOSITORY / "train_configs" / "minigpt4_tasks_joint.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_joint(tmp_path_factory.mktemp("joint"))


def joint(data: Path, *options: str) -> LoadedConfig:
    """The recipe with the tiny model in it, shortened, on `data`."""
    sizes = [f"datasets.{name}.vis_processor.{phase}.image_size=64" for name in RATIOS for phase in ("train", "eval")]
    split = [f"datasets.{name}.val_fraction=0.34" for name in ("detection", "tables")]
    tiny = ("model.model_type=tiny", "model.max_txt_len=200", "run.num_workers=0", "run.device=cpu")
    short = ("run.max_epoch=2", "run.iters_per_epoch=12", "run.warmup_steps=2", "run.init_lr=1e-3")
    paths = (f"paths.data_root={data}", f"paths.output_root={data}", f"run.run_dir={data}/run")
    return load_config(RECIPE, [*sizes, *split, *tiny, *short, *paths, *options])


def answer_of(name: str, number: int) -> str:
    """The target of an image of a dataset by its number, worked out by hand from how the image was drawn."""
    if name == "cc_sbu_align":
        return f"The image is {COLOURS[number]}."
    if name == "detection":
        return f'{{"square1": [{number / 10:.3f}, 0.200, {number / 10 + 0.4:.3f}, 0.800]}}'
    return f'[["{COLOURS[number]}", "age", "{number}"]]'


def test_samples_follow_the_ratio(data: Path) -> None:
    """Counted over what the run's own loader yields, 6,000 samples in 1,500 steps of four."""
    cfg = joint(data, "run.max_epoch=3", "run.iters_per_epoch=500").config
    datasets = build_datasets(
        cfg.datasets, cfg.model, build_prompt_encoder(cfg.model), cfg.run.train_splits, seed=cfg.run.seed, train=True
    )
    names = list(datasets)
    assert {name: cfg.datasets[name].sample_ratio for name in names} == RATIOS
    steps = list(train_loader(cfg.run, datasets).batch_sampler)  # type: ignore[arg-type]
    drawn = Counter(names[key.dataset] for step in steps for key in step)
    assert drawn.total() == 6000
    for name, ratio in RATIOS.items():
        assert drawn[name] == pytest.approx(6000 * ratio / 6, rel=0.01)
    # Also in any stretch of a hundred steps, so that no part of a run sees one kind alone.
    for start in range(0, 1500, 100):
        part = Counter(names[key.dataset] for step in steps[start : start + 100] for key in step)
        assert all(abs(part[name] - 400 * ratio / 6) <= 4 for name, ratio in RATIOS.items())


def test_all_three_are_trained_on_together(data: Path) -> None:
    with logging_restored():
        train(joint(data))
    first, last = read_epochs(data / "run")
    assert first["samples_seen"] == 12 * 4
    assert last["train_loss"] < 0.9 * first["train_loss"]
    saved = read_checkpoint(data / "run" / "checkpoint_1.pth")
    before = read_checkpoint(Path(asset("tiny/stage1.pth")))["model"]["llama_proj.weight"]
    assert not torch.allclose(saved["model"]["llama_proj.weight"], before, atol=1e-3)
    assert saved["run"]["data"].keys() == RATIOS.keys()


def test_a_dry_run_shows_a_sample_of_each_with_its_target(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_restored():
        train(joint(data, f"run.run_dir={data}/none"), dry_run=True)
    panels = re.findall(r"dataset (\w+):\n\W*Sample (\d)(.*?)╰", capsys.readouterr().out, re.DOTALL)
    assert [name for name, _, _ in panels] == list(RATIOS)
    for name, number, body in panels:
        text = " ".join(body.replace("│", " ").split())
        assert "[BOS]###Human: <Img><ImageHere>*16</Img> " in text
        assert text.endswith(f" ###Assistant: [[{answer_of(name, int(number))}###]]")
    assert not (data / "none").exists()
