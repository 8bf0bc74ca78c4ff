"""Scenes in shards: the layout of stage 1."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from dataset.make_shards import main


def make(out: Path, seed: int = 0) -> Path:
    assert main(["--out", str(out), "--scenes", "60", "--per-shard", "20", "--seed", str(seed)]) == 0
    return out


def test_layout_and_wording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make(tmp_path / "a")
    laion, cc_sbu = capsys.readouterr().out.splitlines()
    assert laion == f"{out}/laion/laion_dataset/{{00000..00002}}.tar"
    assert cc_sbu == f"{out}/cc_sbu/cc_sbu_dataset/{{00000..00000}}.tar"
    captions: dict[str, list[str]] = {}
    for source in ("laion", "cc_sbu"):
        shards = sorted(map(str, (out / source / f"{source}_dataset").iterdir()))
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        captions[source] = [sample["txt"].decode() for sample in samples]
        for sample in samples:
            assert json.loads(sample["json"])["caption"] == sample["txt"].decode()
            assert Image.open(io.BytesIO(sample["jpg"])).size == (64, 64)
        assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(len(samples))]
    assert [len(captions[source]) for source in ("laion", "cc_sbu")] == [53, 7]  # 115 to 14
    opening = {" ".join(caption.split()[:2]) for caption in captions["laion"]}
    assert opening <= {"Only one", "Two objects", "Two shapes", "Three objects", "Three shapes"} | {
        start for start in opening if start.startswith("The ")
    }
    assert not any(caption.startswith(("There is", "On the left")) for caption in captions["laion"])
    assert not any(caption.startswith(("Two ", "Three ", "Only ")) for caption in captions["cc_sbu"])


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)
    names = sorted(path.relative_to(first) for path in first.rglob("*.tar"))
    assert len(names) == 4
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert all((first / name).read_bytes() != (other / name).read_bytes() for name in names)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["--scenes", "1"], ["--per-shard", "0"], []):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path / "file"), *arguments])
    assert capsys.readouterr().err.count("error: ") == 3
