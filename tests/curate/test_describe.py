"""Descriptions by the tiny model: the same ones whether or not the run was killed in between."""

from __future__ import annotations

from pathlib import Path

from minigpt4.common.config import load_config
from minigpt4.common.files import PROJECT
from minigpt4.curate.__main__ import run
from minigpt4.curate.ledger import read_events
from minigpt4.scenes.files import write_shards
from tests.curate.conftest import steps_of


def describe(output: Path, name: str, pictures: int) -> Path:
    options = [f"paths.output_root={output}", f"curation.dir={output / name}", f"curation.images={pictures}"]
    options += ["run.device=cpu", "curation.describe.samples=2"]
    options += ["curation.describe.batch_size=2", "curation.describe.generation.max_new_tokens=8"]
    options += [f"model.ckpt={PROJECT}/minigpt4/assets/tiny/stage1.pth"]
    cfg = load_config(PROJECT / "train_configs" / "scenes_curation.yaml", options).config
    (line,) = run("describe", cfg)
    assert line.startswith(
        f"{pictures} drawn = 0 accepted + 0 rejected + {pictures} pending ({pictures} wait for refine)"
    )
    return output / name / "ledger.jsonl"


def test_a_killed_run_goes_on_to_the_same_descriptions(tmp_path: Path) -> None:
    write_shards(tmp_path / "stages" / "data", scenes=20, per_shard=10, seed=0)
    whole = steps_of(read_events(describe(tmp_path, "whole", 5)), "describe")
    assert [len(event["texts"]) for event in whole] == [2] * 5
    assert all(event["continued"] == 1 for event in whole)  # eight tokens are fewer than 80
    ledger = tmp_path / "killed" / "ledger.jsonl"
    ledger.parent.mkdir()
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:8]) + lines[8][:20])  # the draw, three descriptions, and a torn one
    assert steps_of(read_events(describe(tmp_path, "killed", 5)), "describe") == whole
    before = ledger.read_bytes()
    describe(tmp_path, "killed", 5)
    assert ledger.read_bytes() == before
    assert [path.name for path in sorted((tmp_path / "whole" / "image").iterdir())] == [f"{n}.jpg" for n in range(5)]
