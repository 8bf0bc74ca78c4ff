"""Any encoder with any language model: each pair builds, trains, resumes to the last bit, and answers."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from minigpt4.api import load
from minigpt4.common.schema import GenerationConfig
from minigpt4.conversation.template import with_image_tag
from tests.drawn import drawn_scenes
from tests.families import BACKBONES, LANGUAGE_MODELS
from tests.runners.project import Project, assert_same_run

DIAGONAL = (("EVA", "LLaMA"), ("SigLIP", "Qwen3"), ("CLIP", "Gemma 3"), ("DINOv2", "SmolLM2"))
"""Pairs that meet each backbone once; they run in every test."""
PAIRS = [
    pytest.param(backbone, llm, marks=[] if (backbone, llm) in DIAGONAL else [pytest.mark.slow])
    for backbone in BACKBONES
    for llm in LANGUAGE_MODELS
]
STEPS = 5


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Images and annotations, with a folder of each backbone and language model."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, backbone in BACKBONES.items():
        backbone.write(folder / "weights" / name)
    for name, llm in LANGUAGE_MODELS.items():
        llm.write(folder / "weights" / name)
    return Project.make(folder, train=8, val=2)


@pytest.mark.parametrize(("backbone", "llm"), PAIRS)
def test_a_pair_builds_trains_resumes_and_answers(projects: Project, backbone: str, llm: str) -> None:
    family, weights = BACKBONES[backbone], projects.folder / "weights"
    model = family.model_settings(weights / backbone) | {"llama_model": str(weights / llm), "template": "chat"}
    card = projects.folder / f"{backbone}-{llm}.yaml"
    card.write_text(yaml.safe_dump(model | {"max_txt_len": 120}))
    options = [
        f"model.model_type={card}",
        f"run.max_epoch={STEPS}",
        "run.iters_per_epoch=1",
        "run.batch_size=2",
        "run.warmup_steps=0",
        "run.valid_splits=[]",
    ]
    first, second = f"first-{card.stem}", projects.folder / f"second-{card.stem}"
    whole = projects.train_here(*options, f"run.run_dir={first}")
    begun, ended = (projects.checkpoint(first, f"checkpoint_{step}.pth")["model"] for step in (0, STEPS - 1))
    assert begun.keys() == ended.keys()
    assert not any(torch.equal(begun[name], ended[name]) for name in ended)  # all of them are trained
    second.mkdir()
    shutil.copy(whole / "checkpoint_1.pth", second)
    projects.train_here(*options, f"run.run_dir={second}", "run.resume_ckpt_path=auto")
    assert not (second / "checkpoint_0.pth").exists()
    assert_same_run(whole / f"checkpoint_{STEPS - 1}.pth", second / f"checkpoint_{STEPS - 1}.pth")

    trained = load(whole / "config.yaml", options=[f"model.ckpt={whole / f'checkpoint_{STEPS - 1}.pth'}"], device="cpu")
    assert trained.model.encoder.num_image_tokens == family.tokens
    queries = trained.encode([scene.image for scene in drawn_scenes(2)])
    assert queries.shape[1:] == (family.tokens, trained.model.query_width)
    assert not torch.equal(queries[0], queries[1])
    prompt = trained.model.encoder.prompt(with_image_tag("What is it?"))
    settings = GenerationConfig(max_new_tokens=6)
    answers = trained.model.generate([prompt] * len(queries), settings, queries=queries)
    assert all(1 <= len(answer.token_ids) <= settings.max_new_tokens for answer in answers)
    streamed = list(trained.model.stream(prompt, settings, queries=queries[:1]))
    assert streamed[-1] == answers[0]
