"""The draw, and descriptions by the tiny model: the same ones whether or not the run was killed in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PROJECT
from minigpt4.curate.__main__ import run
from minigpt4.curate.describe import draw
from minigpt4.curate.ledger import read_events, sample_states
from minigpt4.processors.image import open_image
from minigpt4.scenes.files import write_shards
from tests.curate.conftest import steps_of

TINY = ("run.device=cpu", f"model.ckpt={PROJECT}/minigpt4/assets/tiny/stage1.pth")
SHORT = ("curation.describe.batch_size=2", "curation.describe.generation.max_new_tokens=8")


def describe(output: Path, name: str, images: int) -> Path:
    options = [f"paths.output_root={output}", f"curation.dir={output / name}", f"curation.images={images}"]
    options += [*TINY, *SHORT, "curation.describe.samples=2"]
    cfg = load_config(PROJECT / "train_configs" / "scenes_curation.yaml", options).config
    (line,) = run("describe", cfg)
    assert line.startswith(f"{images} drawn = 0 accepted + 0 rejected + {images} pending ({images} wait for refine)")
    return output / name / "ledger.jsonl"


def test_a_killed_run_resumes_to_the_same_descriptions(tmp_path: Path) -> None:
    write_shards(tmp_path / "stages" / "data", scenes=20, per_shard=10, seed=0)
    full = steps_of(read_events(describe(tmp_path, "full", 5)), "describe")
    assert [len(event["texts"]) for event in full] == [2] * 5
    assert all(event["continued"] == 1 for event in full)  # eight tokens are fewer than 80
    ledger = tmp_path / "killed" / "ledger.jsonl"
    ledger.parent.mkdir()
    lines = (tmp_path / "full" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:8]) + lines[8][:20])  # the draw, three descriptions, and a torn one
    assert steps_of(read_events(describe(tmp_path, "killed", 5)), "describe") == full
    before = ledger.read_bytes()
    describe(tmp_path, "killed", 5)
    assert ledger.read_bytes() == before
    assert [path.name for path in sorted((tmp_path / "full" / "image").iterdir())] == [f"{n}.jpg" for n in range(5)]


def test_unreadable_images_stay_pending_and_others_become_jpeg(tmp_path: Path) -> None:
    """Of three images, one is a JPEG, one a PNG and one broken, until it is restored."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (9, 7), "red").save(folder / "a.jpg")
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"not an image")
    rows = [{"image": name, "answer": "x", "split": "train"} for name in ("a.jpg", "b.png", "c.png")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"reader": "jsonl", "annotations": str(folder / "rows.jsonl")}
    options = [*TINY, *SHORT, "curation.images=3", f"curation.dir={tmp_path}/curation"]
    (tmp_path / "run.yaml").write_text(json.dumps({"model": {"model_type": "tiny"}, "datasets": {"mine": dataset}}))
    cfg = load_config(tmp_path / "run.yaml", options).config
    assert "1 wait for describe" in run("describe", cfg)[-1]
    states = sample_states(read_events(tmp_path / "curation" / "ledger.jsonl"))
    names = {Path(state.drawn["name"]).stem: state for state in states.values()}
    assert "cannot be read: it is not an image" in (names["c"].error or "")
    kept = tmp_path / "curation" / "image"
    assert (kept / f"{names['a'].sample}.jpg").read_bytes() == (folder / "a.jpg").read_bytes()
    assert open_image(kept / f"{names['b'].sample}.jpg").getpixel((0, 0)) == (255, 255, 255)
    assert len(list(kept.iterdir())) == 2
    Image.new("RGB", (9, 7), "blue").save(folder / "c.png")
    assert "(3 wait for refine)" in run("describe", cfg)[-1]
    (tmp_path / "curation" / "ledger.jsonl").write_text(
        json.dumps({"sample": "0", "step": "draw", "dataset": "mine", "index": 2, "name": "another"}) + "\n"
    )
    (kept / "0.jpg").unlink()
    run("describe", cfg)
    (state, *_) = sample_states(read_events(tmp_path / "curation" / "ledger.jsonl")).values()
    assert "was drawn as another, number 2 of dataset 'mine', which is another image now" in (state.error or "")


class Named:
    """A dataset, as far as the draw sees it."""

    def __init__(self, name: str, length: int) -> None:
        self.records = [SimpleNamespace(image_id=f"{name}{index}") for index in range(length)]

    def __len__(self) -> int:
        return len(self.records)


def test_a_larger_draw_only_adds() -> None:
    datasets: Any = {"a": Named("a", 3), "none": Named("none", 0), "b": Named("b", 5)}
    events = draw(datasets, 8, seed=42)
    assert sorted(event["name"] for event in events) == ["a0", "a1", "a2", "b0", "b1", "b2", "b3", "b4"]
    assert all(event["name"] == f"{event['dataset']}{event['index']}" for event in events)
    assert [event["sample"] for event in events] == [str(number) for number in range(8)]
    assert draw(datasets, 4, seed=42) == events[:4] != draw(datasets, 4, seed=43)
    with pytest.raises(ConfigError, match=r"curation\.images: 9 should be at most 8, the number of images"):
        draw(datasets, 9, seed=42)
