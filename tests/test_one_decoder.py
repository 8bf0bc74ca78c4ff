"""An image of any form becomes the same pixels wherever it comes in.

Training, evaluation, data checks, curation, the API, the commands, the page and the report open files of every form.
What reaches the vision encoder, or what was decoded, is compared with `ImageProcessor` on the file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4 import api
from minigpt4.api import LoadedModel
from minigpt4.chat import main as chat_main
from minigpt4.common.config import load_config
from minigpt4.common.files import PACKAGE
from minigpt4.common.schema import Config, EvaluationConfig
from minigpt4.curate import describe as curation
from minigpt4.curate.__main__ import run as curate
from minigpt4.curate.ledger import read_events, sample_states
from minigpt4.datasets import check, leaks
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import train_loader
from minigpt4.evaluation.report import thumbnail
from minigpt4.generate import main as generate_main
from minigpt4.models.generation import Answer
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors import image as image_module
from minigpt4.processors.image import ImageProcessor, open_image
from minigpt4.tasks.captioning import Captioning
from tests.processors.forms import FORMS

Pixels = dict[str, Tensor]
"""File name -> (3, S, S) uint8."""
ORDER = sorted(FORMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every form."""
    images = tmp_path_factory.mktemp("forms")
    for name, content in FORMS.items():
        (images / name).write_bytes(content())
    return images


@pytest.fixture(scope="module")
def side(tiny: LoadedModel) -> int:
    """Side of the model's images (S)."""
    processor = tiny.image_processor
    assert isinstance(processor, ImageProcessor)
    return processor.image_size


@pytest.fixture(scope="module")
def expected(folder: Path, side: int) -> Pixels:
    return {name: ImageProcessor(side)(folder / name) for name in ORDER}


@pytest.fixture
def encoded(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that reach the vision encoder, in order; the model says "x" about all of them."""
    seen: list[Tensor] = []

    def encode_queries(self: MiniGPT4, images: Tensor) -> Tensor:
        seen.extend(images)
        return torch.zeros(len(images), self.encoder.num_image_tokens, self.query_width)

    def stream(self: MiniGPT4, *_: Any, **__: Any) -> Iterator[Answer]:
        yield Answer("x", ())

    monkeypatch.setattr(MiniGPT4, "encode_queries", encode_queries)
    monkeypatch.setattr(MiniGPT4, "generate", lambda self, prompts, *_, **__: [Answer("x", ())] * len(prompts))
    monkeypatch.setattr(MiniGPT4, "stream", stream)
    monkeypatch.setattr(MiniGPT4, "max_prompt_tokens", lambda self, settings: 10**6)
    monkeypatch.setattr(api, "from_config", lambda *_, **__: tiny)
    return seen


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """What `decode_pixels` returned by the last part of the name it was given, (H, W, 3)."""
    found: Pixels = {}
    original = image_module.decode_pixels

    def decode_pixels(source: Any, name: str | None = None) -> image_module.Pixels:
        pixels = original(source, name)
        found[Path(name or str(source)).name] = torch.from_numpy(pixels)
        return pixels

    for module in (image_module, leaks):
        monkeypatch.setattr(module, "decode_pixels", decode_pixels)
    return found


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    """A dataset of the files."""
    rows = [{"image": name, "id": name, "answer": "x", "split": "train"} for name in ORDER]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"reader": "jsonl", "annotations": str(tmp_path / "rows.jsonl"), "images": str(folder)}
    curation = {"dir": str(tmp_path / "curation"), "images": len(ORDER), "describe": {"max_continues": 0}}
    run = {"device": "cpu", "batch_size": len(ORDER), "num_workers": 0, "max_epoch": 1}
    model = {"model_type": "tiny", "ckpt": "${asset:tiny/stage1.pth}"}
    content = {"model": model, "datasets": {"forms": dataset}, "run": run, "curation": curation}
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    return load_config(tmp_path / "run.yaml").config


@pytest.fixture
def dataset(config: Config, tiny: LoadedModel) -> Callable[[bool], InstructionDataset]:
    """The dataset, for training or not."""

    def build(train: bool) -> InstructionDataset:
        built = build_datasets(
            config.datasets, config.model, tiny.model.encoder, ["train"], seed=config.run.seed, train=train
        )
        return built["forms"]

    return build


def assert_equal(found: Mapping[str, Tensor], expected: Pixels) -> None:
    assert sorted(found) == ORDER
    assert [name for name in ORDER if not torch.equal(found[name], expected[name])] == []


def test_training(
    dataset: Callable[[bool], InstructionDataset],
    config: Config,
    tiny: LoadedModel,
    encoded: list[Tensor],
    expected: Pixels,
) -> None:
    (batch,) = train_loader(config.run, {"forms": dataset(True)})
    with torch.no_grad():
        tiny.model(batch)
    assert_equal(dict(zip(batch.image_ids, encoded, strict=True)), expected)


def test_evaluation(
    dataset: Callable[[bool], InstructionDataset], tiny: LoadedModel, encoded: list[Tensor], expected: Pixels
) -> None:
    records = dataset(False)
    settings = EvaluationConfig(num_workers=0, batch_size=4)
    assert not Captioning(tiny.model, records, range(len(records)), settings).encode_images()
    assert_equal({record.image: pixels for record, pixels in zip(records.records, encoded, strict=True)}, expected)


def test_data_check(config: Config, decoded: Pixels, side: int, expected: Pixels) -> None:
    assert check.check_dataset("forms", config.datasets["forms"], config.model).problems == []
    found = dict(decoded)
    assert_equal({name: ImageProcessor(side)(pixels.numpy()) for name, pixels in found.items()}, expected)


def test_curation(
    config: Config,
    tiny: LoadedModel,
    encoded: list[Tensor],
    decoded: Pixels,
    side: int,
    expected: Pixels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image is opened as everywhere, and so is the JPEG copy that is kept for stage 2."""
    monkeypatch.setattr(curation, "build_model", lambda *_, **__: tiny.model)
    curate("describe", config)
    opened = {name: decoded[name] for name in ORDER}
    assert_equal({name: ImageProcessor(side)(pixels.numpy()) for name, pixels in opened.items()}, expected)
    kept = Path(config.curation.dir)
    states = sample_states(read_events(kept / "ledger.jsonl")).values()
    copies = {state.drawn["name"]: ImageProcessor(side)(kept / "image" / f"{state.sample}.jpg") for state in states}
    assert_equal({state.drawn["name"]: pixels for state, pixels in zip(states, encoded, strict=True)}, copies)


def test_api(tiny: LoadedModel, folder: Path, encoded: list[Tensor], expected: Pixels) -> None:
    tiny.describe([folder / name for name in ORDER])
    for name in ORDER:
        tiny.describe((folder / name).read_bytes())
        tiny.chat().ask("What?", [str(folder / name)])
    assert_equal(dict(zip(ORDER, encoded, strict=False)), expected)
    assert_equal(dict(zip(ORDER, encoded[len(ORDER) :: 2], strict=True)), expected)
    assert_equal(dict(zip(ORDER, encoded[len(ORDER) + 1 :: 2], strict=True)), expected)


def test_chat_command(folder: Path, encoded: list[Tensor], expected: Pixels) -> None:
    chat_main(["--image", *(str(folder / name) for name in ORDER), "--ask", "What?"])
    assert_equal(dict(zip(ORDER, encoded, strict=True)), expected)


def test_generate_command(folder: Path, tmp_path: Path, encoded: list[Tensor], expected: Pixels) -> None:
    generate_main(["--images", str(folder), "--out", str(tmp_path / "out.jsonl"), "--options", "run.device=cpu"])
    assert_equal(dict(zip(ORDER, encoded, strict=True)), expected)


def test_page(tiny: LoadedModel, folder: Path, encoded: list[Tensor], expected: Pixels) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (pip install gradio)")
    from minigpt4.web.handlers import Handlers

    handlers = Handlers([tiny], ["tiny"])
    controls = (5, 1, False, 1.0, 0.9, 1.0)
    for name in ORDER:
        file = str(folder / name)
        for _ in handlers.ask(None, {"text": "What?", "files": [file]}, "", *controls):
            pass
        handlers.describe(file, "", *controls)
    assert_equal(dict(zip(ORDER, encoded[::2], strict=True)), expected)
    assert_equal(dict(zip(ORDER, encoded[1::2], strict=True)), expected)


def test_report(folder: Path, decoded: Pixels, side: int, expected: Pixels) -> None:
    assert all(thumbnail(folder / name, open_image) for name in ORDER)
    assert_equal({name: ImageProcessor(side)(pixels.numpy()) for name, pixels in dict(decoded).items()}, expected)


def test_only_one_module_decodes_images() -> None:
    decoders = {"Image.open", "ImageOps.exif_transpose", "decode_jpeg", "read_image"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in decoders:
                found.add(path)
    assert found == {PACKAGE / "processors" / "image.py"}
