"""The JSON Schema for editors: it accepts the project's files and refuses what the loader refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import CONFIGS
from tests.test_documentation import FENCE, PAGES, text_of

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "docs" / "configuration.schema.json").read_text(encoding="utf-8"))
CARD = json.loads((ROOT / "docs" / "dataset_card.schema.json").read_text(encoding="utf-8"))["$ref"].partition("#")[2]
RUNS = sorted([*ROOT.glob("train_configs/*.yaml"), *ROOT.glob("eval_configs/*.yaml"), CONFIGS / "default.yaml"])
CARDS = sorted(CONFIGS.glob("datasets/*.yaml"))
MISTAKES = [
    "run.max_epochs=3",
    "runn.max_epoch=3",
    "run.max_epoch=0",
    "run.max_epoch=five",
    "run.max_epoch=1.5",
    "run.init_lr=-1",
    "model.precision=fast",
    "run.trackers=tensorboard",
    "model.image_size=null",
    "evaluation.fraction=1.5",
    "evaluation.generation.top_p=0",
    "curation.filter.min_words=many",
]
FINE = [
    "model.low_resource=true",
    "run.iters_per_epoch=null",
    "run.batch_size='${evaluation.batch_size}'",
    "run.init_lr=1",
]


def problems(values: Any, pointer: str = "") -> list[str]:
    """What a JSON Schema validator says of `values`, by the whole schema or the part at `pointer`."""
    schema = {"$ref": f"#{pointer}", "$defs": SCHEMA["$defs"]} if pointer else SCHEMA
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(values)]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_shipped_runs_are_accepted(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.name)
def test_shipped_dataset_cards_are_accepted(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8")), CARD) == []


def test_the_examples_of_the_pages_are_accepted() -> None:
    fences = [match for page in PAGES for match in FENCE.finditer(text_of(page))]
    blocks = [yaml.safe_load(match[3]) for match in fences if match[2] == "yaml"]
    runs = [block for block in blocks if set(block) & set(SCHEMA["properties"])]
    assert len(runs) > 2 and len(blocks) > len(runs) + 2
    assert [problem for block in runs for problem in problems(block)] == []
    assert [problem for block in blocks if block not in runs for problem in problems(block, CARD)] == []


@pytest.mark.parametrize("option", MISTAKES)
def test_it_refuses_what_the_loader_refuses(option: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [option])
    assert problems(nested(option)) != []


@pytest.mark.parametrize("option", FINE)
def test_it_accepts_what_the_loader_accepts(option: str) -> None:
    load_config(None, [option])
    assert problems(nested(option)) == []


def nested(option: str) -> dict[str, Any]:
    """`a.b=c` as nested mappings."""
    key, _, value = option.partition("=")
    values = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        values = {part: values}
    return values
