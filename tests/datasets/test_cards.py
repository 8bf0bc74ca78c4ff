"""Every card of MiniGPT-v2's datasets on five records in the published layout, and all of them in one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.config import load_config
from minigpt4.common.files import CONFIGS, PROJECT
from minigpt4.common.schema import Config, RunConfig
from minigpt4.conversation.template import TEMPLATES, PromptEncoder
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.check import load_card
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import collate, train_loader
from tests.ascii_tokenizer import AsciiTokenizer
from tests.datasets.public_layouts import CARDS, Expected

OTHER_CARDS = {"laion", "cc_sbu", "cc_sbu_align", "flickr30k", "detection", "tables"}
"""Cards of MiniGPT-4 and of other tasks, which have tests of their own."""


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(AsciiTokenizer(), TEMPLATES["minigpt_v2"], num_image_tokens=2, max_txt_len=500)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five records of every card."""
    folder = tmp_path_factory.mktemp("public")
    for write in CARDS.values():
        write(folder)
    return folder


def build(cfg: Config, encoder: PromptEncoder, *splits: str) -> dict[str, InstructionDataset]:
    return build_datasets(cfg.datasets, cfg.model, encoder, splits, seed=cfg.run.seed, train=True)


def test_every_card_is_here() -> None:
    assert {path.stem for path in (CONFIGS / "datasets").glob("*.yaml")} == {*CARDS, *OTHER_CARDS}


def test_fixtures_have_five_records(tmp_path: Path) -> None:
    sizes = {name: len(write(tmp_path)) for name, write in CARDS.items()}
    assert {name: size for name, size in sizes.items() if size != 5} == dict.fromkeys(
        ("refcoco", "refcocop", "refcocog"), 10
    )


def asked(expected: Expected, prompts: list[str]) -> set[str]:
    """The questions that a record may be asked by, with images as they are shown."""
    image = "<Img><ImageHere></Img> "
    if expected.earlier:
        return {f"[INST] {expected.asks} [/INST]"}
    if not expected.asks:
        texts = prompts
    else:
        around = [prompt for prompt in prompts if "{question}" in prompt] or ["{question}"]
        texts = [image * expected.images + prompt.replace("{question}", expected.asks) for prompt in around]
    return {f"[BOS][INST] {text} [/INST]".replace("<ImageHere>", "<ImageHere>*2") for text in texts}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_builds_draws_and_collates(card: str, encoder: PromptEncoder, tmp_path: Path) -> None:
    expected = CARDS[card](tmp_path)
    cfg = load_card(card, [f"paths.data_root={tmp_path}", "model.image_size=8"])
    (dataset,) = build(cfg, encoder, cfg.datasets[card].split or "train").values()
    assert len(dataset) == len(expected)
    ids = [record.image_id for record in dataset.records]
    assert len(set(ids)) == len(ids), "predictions would collide"
    for index, wanted in enumerate(expected):
        record = dataset.records[index]
        assert (record.kind, record.boxes, record.choices) == (wanted.kind, wanted.boxes, wanted.choices)
        assert record.answers == wanted.answers
        samples = [dataset.sample(index, epoch) for epoch in range(12)]
        assert all(len(sample.images) == wanted.images and not sample.skipped for sample in samples)
        questions = set()
        for sample in samples:
            segments = encoder.labelled_segments(sample.encoded)
            trained = [text for text, is_target in segments if is_target]
            assert trained[:-1] == [f"{answer}</s>" for _, answer in wanted.earlier]
            assert trained[-1] in {f"{answer}</s>" for answer in wanted.answers}
            text = "".join(text if not is_target else "\n" for text, is_target in segments)
            *earlier, last, end = text.split("\n")
            assert end == "" and all(turn[0] in said for turn, said in zip(wanted.earlier, earlier, strict=True))
            questions.add(last.removeprefix("<s>"))
        assert questions <= asked(wanted, dataset.prompts)
    batch = collate([dataset.sample(index, 0) for index in range(len(dataset))])
    assert len(batch.image_ids) == len(expected) and batch.num_targets > 0
    assert len(batch.image_positions) == 2 * sum(wanted.images for wanted in expected)


@pytest.fixture(scope="module")
def stages(data: Path) -> dict[int, Config]:
    """The recipe of each stage on small images."""
    options = [f"paths.data_root={data}", "paths.weights_root=W", "model.image_size=8", "run.device=cpu"]
    return {
        number: load_config(PROJECT / "train_configs" / f"minigptv2_stage{number}.yaml", options).config
        for number in (1, 2, 3)
    }


def small_run(cfg: Config, batch_size: int, steps: int) -> RunConfig:
    return replace(cfg.run, batch_size=batch_size, global_batch=None, max_epoch=1, iters_per_epoch=steps, num_workers=0)


def test_an_answer_is_drawn_as_often_as_it_was_given(data: Path, encoder: PromptEncoder) -> None:
    dataset = build(load_card("ok_vqa", [f"paths.data_root={data}", "model.image_size=8"]), encoder, "train")["ok_vqa"]
    drawn = Counter(dataset._turns(0, epoch)[-1][1] for epoch in range(2000))
    assert drawn["1"] / 2000 == pytest.approx(0.7, abs=0.03) and drawn.keys() == {"1", "many"}


class TestStages:
    def test_the_published_schedules(self, stages: dict[int, Config]) -> None:
        runs = [stages[number].run for number in (1, 2, 3)]
        assert [run.max_epoch * (run.iters_per_epoch or 0) for run in runs] == [40_000, 50_000, 35_000]
        assert [run.global_batch for run in runs] == [96, 64, 24]
        assert [run.init_lr for run in runs] == [1e-4, 1e-5, 1e-5]

    def test_each_begins_where_the_one_before_ended(self, stages: dict[int, Config]) -> None:
        ckpts = [stages[number].model.ckpt for number in (1, 2, 3)]
        assert ckpts == [None, "W/minigptv2_stage1.pth", "W/minigptv2_stage2.pth"]

    def test_the_third_samples_the_seconds_data_less(self, stages: dict[int, Config]) -> None:
        second, third = (
            {name: entry.sample_ratio for name, entry in stages[number].datasets.items()} for number in (2, 3)
        )
        for name, ratio in second.items():
            assert third[name] / sum(third.values()) < ratio / sum(second.values())

    @pytest.mark.parametrize("number", [2, 3])
    def test_ratios_hold_over_ten_thousand_draws(
        self, number: int, stages: dict[int, Config], encoder: PromptEncoder
    ) -> None:
        cfg = stages[number]
        datasets = build(cfg, encoder, "train")
        names = list(datasets)
        loader = train_loader(small_run(cfg, batch_size=25, steps=400), datasets)
        drawn = Counter(names[key.dataset] for step in loader.batch_sampler for key in step)  # type: ignore[union-attr]
        assert drawn.total() == 10_000
        total = sum(entry.sample_ratio for entry in cfg.datasets.values())
        for name, entry in cfg.datasets.items():
            expected = 10_000 * entry.sample_ratio / total
            assert abs(drawn[name] - expected) < max(4, 0.01 * expected)

    def test_one_two_and_four_processes_train_on_the_same(
        self, stages: dict[int, Config], encoder: PromptEncoder
    ) -> None:
        datasets = build(stages[3], encoder, "train")
        drawn = []
        for world in (1, 2, 4):
            run = small_run(stages[3], batch_size=24 // world, steps=3)
            steps: list[Counter[str]] = [Counter() for _ in range(3)]
            for rank in range(world):
                for step, batch in enumerate(train_loader(run, datasets, world_size=world, rank=rank)):
                    rows = zip(batch.image_ids, batch.input_ids.tolist(), batch.lengths, strict=True)
                    steps[step].update(f"{name} {ids[:length]}" for name, ids, length in rows)
            drawn.append(steps)
        assert drawn[0] == drawn[1] == drawn[2]
        assert all(step.total() == 24 for step in drawn[0])
