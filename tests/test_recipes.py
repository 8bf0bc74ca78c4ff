"""The shipped recipes of both stages: their numbers, and how a sample is laid out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.files import CONFIGS, PROJECT
from minigpt4.common.registry import schedules
from minigpt4.common.schema import Config
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION
from minigpt4.conversation.template import read_prompts
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.shards.index import shard_paths
from minigpt4.models.loading import build_prompt_encoder
from minigpt4.runners.optim import LrSettings
from tests.datasets.readers.conftest import box, save_table, write_coco
from tests.runners.project import PARITY_A
from tests.runners.test_stages import write_stage2

QUERIES = 32


def recipe(name: str, *options: str) -> Config:
    return load_config(PROJECT / "train_configs" / f"{name}.yaml", list(options)).config


def rate(cfg: Config, step: int) -> float:
    assert cfg.run.iters_per_epoch is not None
    return schedules.get(cfg.run.lr_sched)(step, settings=LrSettings.of(cfg.run, cfg.run.iters_per_epoch))


class TestStage1:
    def test_numbers(self) -> None:
        cfg = recipe("minigpt4_stage1_pretrain")
        assert (cfg.run.max_epoch, cfg.run.iters_per_epoch, cfg.run.weight_decay) == (4, 5000, 0.05)
        assert rate(cfg, 0) == pytest.approx(1e-6)
        assert rate(cfg, 2500) == pytest.approx((1e-6 + 1e-4) / 2, rel=1e-3)
        assert max(rate(cfg, step) for step in range(4990, 5010)) == pytest.approx(1e-4, rel=0.05)
        assert rate(cfg, 19_999) == pytest.approx(8e-5, rel=1e-3)
        assert cfg.run.batch_size == 64
        assert {name: dataset.sample_ratio for name, dataset in cfg.datasets.items()} == {"laion": 115, "cc_sbu": 14}
        assert cfg.model.ckpt is None and cfg.run.valid_splits == []

    def test_shards_lie_where_the_original_puts_them(self) -> None:
        cfg = recipe("minigpt4_stage1_pretrain", "paths.data_root=D")
        assert cfg.datasets["laion"].shards == "D/laion/laion_dataset/{00000..10488}.tar"
        assert cfg.datasets["cc_sbu"].shards == "D/cc_sbu/cc_sbu_dataset/{00000..01255}.tar"

    def test_shards_are_a_pattern_or_a_list_from_the_command_line_too(self) -> None:
        several = recipe("minigpt4_stage1_pretrain", "datasets.laion.shards=[a.tar,'{0..1}.tar']")
        assert shard_paths("laion", several.datasets["laion"].shards) == [Path(n) for n in ("a.tar", "0.tar", "1.tar")]
        one = recipe("minigpt4_stage1_pretrain", "datasets.laion.shards=d/{00..01}.tar")
        assert shard_paths("laion", one.datasets["laion"].shards) == [Path("d/00.tar"), Path("d/01.tar")]

    def test_a_sample_is_bos_image_caption_and_line_break(self) -> None:
        cfg = recipe("minigpt4_stage1_pretrain", f"model.llama_model={PARITY_A / 'llama'}")
        encoder = build_prompt_encoder(cfg.model)
        (prompt,) = read_prompts(str(cfg.model.prompt_path), "model.prompt_path")
        encoded = encoder.encode_example(prompt, "a dog")
        caption = encoder.tokenizer.encode("a dog\n")
        assert encoded.input_ids == [encoder.tokenizer.bos_id, *[IMAGE_POSITION] * QUERIES, *caption]
        assert encoded.labels == [IGNORED_LABEL] * (1 + QUERIES) + caption
        assert caption[:-1] == encoder.tokenizer.encode("a dog")  # so the end is one token of its own


class TestStage2:
    def test_numbers(self) -> None:
        cfg = recipe("minigpt4_stage2_finetune")
        assert (cfg.run.max_epoch, cfg.run.iters_per_epoch, cfg.run.batch_size) == (5, 200, 12)
        assert (rate(cfg, 0), rate(cfg, 999)) == (pytest.approx(1e-6), pytest.approx(1e-5, rel=1e-3))
        assert max(rate(cfg, step) for step in range(190, 210)) == pytest.approx(3e-5, rel=0.1)
        assert (cfg.model.prompt_template, cfg.model.end_sym) == ("###Human: {} ###Assistant: ", "###")
        assert len(read_prompts(str(cfg.model.prompt_path), "model.prompt_path")) == 4

    def test_it_starts_from_what_stage_1_made(self) -> None:
        cfg = recipe("minigpt4_stage2_finetune", "paths.weights_root=W")
        assert cfg.model.ckpt == "W/minigpt4_stage1.pth"


@pytest.mark.parametrize("card", sorted(path.stem for path in (CONFIGS / "models").glob("minigpt4_*.yaml")))
def test_every_model_card_goes_with_both_stages(card: str) -> None:
    model_type = card.removeprefix("minigpt4_")
    for name in ("minigpt4_stage1_pretrain", "minigpt4_stage2_finetune"):
        cfg = recipe(name, f"model.model_type={model_type}")
        assert cfg.model.llama_model and Path(str(cfg.model.prompt_path)).is_file()
        assert all(cfg.model.image_encoder_files().values())
        assert (cfg.model.q_former_model is not None) == cfg.model.has_qformer


def test_the_joint_recipe_trains_on_all_by_ratio(tmp_path: Path) -> None:
    """The shipped YAML on small data, with the tiny model's tokenizer."""
    write_stage2(tmp_path)
    (tmp_path / "detection" / "images").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "detection" / "images" / "a.jpg")
    write_coco(tmp_path / "detection" / "instances.json", [box(2, 0, 0, 100, 100)])
    save_table(tmp_path / "tables", "t", "name,age\nAnn,31\n")
    options = ["model.model_type=tiny", f"paths.data_root={tmp_path}", "run.seed=1"]
    options += [f"datasets.{name}.val_fraction=0" for name in ("detection", "tables")]
    cfg = recipe("minigpt4_tasks_joint", *options)
    assert {name: dataset.sample_ratio for name, dataset in cfg.datasets.items()} == {
        "cc_sbu_align": 2,
        "detection": 3,
        "tables": 1,
    }
    datasets = build_datasets(
        cfg.datasets, cfg.model, build_prompt_encoder(cfg.model), ["train"], seed=cfg.run.seed, train=True
    )
    assert datasets["detection"][0].answer == '{"dog1": [0.000, 0.000, 0.500, 1.000]}'
    assert datasets["detection"][0].instruction.startswith("<Img><ImageHere></Img> List every object")
    assert datasets["tables"][0].answer == '[["Ann", "age", "31"]]'
    assert "List every value of this table" in datasets["tables"][0].instruction
