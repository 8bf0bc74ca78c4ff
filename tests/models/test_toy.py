"""What the tiny model is recognised by, and the images that it can know nothing about."""

from __future__ import annotations

import io
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from minigpt4.api import LoadedModel
from minigpt4.common.checkpoint import fingerprint
from minigpt4.common.files import asset
from minigpt4.models.toy import FILES, NOTE, UNKNOWN_IMAGE, is_toy, looks_drawn
from minigpt4.processors.image import ImageProcessor
from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split
from tests.drawn import drawn_scenes

PROCESSOR = ImageProcessor(64)


def photographs() -> list[Image.Image]:
    """Images without plain colours: noise, a noisy gradient, and soft blobs."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:200, 0:300] / 300
    gradient = np.stack([columns * 200, rows * 180, (rows + columns) * 90], axis=2) + random.normal(
        30, 4, (200, 300, 3)
    )
    noise = Image.fromarray(random.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    blobs = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((320, 240))
    return [noise, Image.fromarray(gradient.clip(0, 255).astype(np.uint8)), blobs.filter(ImageFilter.GaussianBlur(5))]


def test_drawn_scenes_of_any_seed_and_size_look_drawn() -> None:
    for seed in range(12):
        for placed in sample_split(("train", "val", "test")[seed % 3], 6, seed):
            image = draw_scene(placed, (64, 128, 224)[seed % 3])
            compressed = io.BytesIO()
            image.save(compressed, "JPEG", quality=95)
            for source in (image, compressed.getvalue()):
                assert looks_drawn(PROCESSOR(source)), (seed, placed)


def test_photographs_do_not() -> None:
    images = photographs()
    for image in [*images, *(image.convert("L") for image in images[1:])]:  # shrunk grey noise is nearly one grey
        assert not looks_drawn(PROCESSOR(image))


def test_few_real_photographs_do(shared_data: Path) -> None:
    files = sorted((shared_data / "images").glob("*.jpg"))
    assert sum(looks_drawn(PROCESSOR(file)) for file in files) <= 0.03 * len(files)
    grey = [Image.open(file).convert("L") for file in files]
    assert sum(looks_drawn(PROCESSOR(image)) for image in grey) <= 0.04 * len(files)


def test_one_colour_is_drawn() -> None:
    assert looks_drawn(torch.zeros(3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("files", FILES)
def test_it_is_recognised_by_content(tmp_path: Path, files: dict[str, str]) -> None:
    copy = shutil.copytree(asset(files["llama_model"]), tmp_path / "vicuna-7b")
    base = {name: fingerprint(asset(file)) for name, file in files.items()}
    assert is_toy(base | {"llama_model": fingerprint(copy)})
    assert not is_toy({})
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"user")
    assert not is_toy(base | {"llama_model": fingerprint(copy)})


def test_a_photograph_is_answered_with_a_remark_once_in_the_log(
    tiny: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    model, photograph = tiny.with_projection(asset("tiny/stage1.pth")), photographs()[0]
    assert model.note == NOTE and model.summary == "minigpt4 tiny on cpu in float32"
    with caplog.at_level(logging.WARNING):
        model.describe([scene.image for scene in drawn_scenes(2)])
        assert not caplog.messages
        model.describe([drawn_scenes()[0].image, photograph], max_new_tokens=2)
        model.describe(photograph, max_new_tokens=2)
    assert caplog.messages == [UNKNOWN_IMAGE]
    chat = model.chat()
    chat.ask("What is it?", [photograph], max_new_tokens=2)
    assert chat.turns[0].remark == UNKNOWN_IMAGE
    assert list(chat.regenerate(max_new_tokens=2)) and chat.turns[0].remark == UNKNOWN_IMAGE
    chat.ask("And this?", [drawn_scenes()[0].image], max_new_tokens=2)
    assert not chat.turns[1].remark


def test_a_users_model_says_nothing_of_it(
    tiny: LoadedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.model, "base", tiny.model.base | {"llama_model": "0123456789abcdef"})
    model = LoadedModel(tiny.model, tiny.image_processor, replace(tiny.defaults, max_new_tokens=2))
    model.describe(photographs()[0])
    assert not model.note and not caplog.messages
