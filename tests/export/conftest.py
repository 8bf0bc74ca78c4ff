"""An export of small published-layout weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.common.schema import Config, EvaluationConfig, GenerationConfig
from minigpt4.export import reload, verify
from tests.drawn import drawn_scenes
from tests.models.parity import Case, model_config


@dataclass(frozen=True)
class Exported:
    """A folder and the configuration of its model."""

    cfg: Config
    folder: Path


def configuration(case: Case, **changes: object) -> Config:
    """The configuration of a fixture's model with short answers."""
    cfg = Config(model=model_config(case.folder, **changes))
    return replace(cfg, evaluation=EvaluationConfig(generation=GenerationConfig(max_new_tokens=6)))


@pytest.fixture(scope="package")
def in_this_process() -> Iterator[None]:
    """The other side of a verification runs here: a new process would import torch for ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_fresh", lambda folder, work: reload.main(str(folder), str(work)))
        yield


@pytest.fixture(scope="package")
def exported(parity_a: Case, tmp_path_factory: pytest.TempPathFactory, in_this_process: None) -> Exported:
    """MiniGPT-4 in the published layout with few layers and small random weights, exported and verified."""
    from minigpt4.export.__main__ import export

    folder = tmp_path_factory.mktemp("export")
    logo = Image.new("RGBA", (70, 60))  # transparent, which is white here and black there
    logo.paste((200, 30, 90, 255), (20, 10, 40, 50))
    logo.save(folder / "logo.png")
    drawn_scenes()[0].image.save(folder / "scene.bmp")  # a format that transformers does not read
    made = Exported(configuration(parity_a), folder / "model")
    export(made.cfg, made.folder, [folder / "logo.png", folder / "scene.bmp"])
    return made
