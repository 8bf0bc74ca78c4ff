"""The same image in several splits; through the command that reports it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigpt4.datasets import check
from minigpt4.datasets.check import main
from tests.datasets.conftest import write_jsonl
from tests.drawn import drawn_scenes

Report = Callable[[dict[str, str]], list[str]]


def photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image with large and small structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """0.png to 11.png, which differ."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        photo(number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def warnings(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """(image -> split) -> the warnings of the check."""

    def report(splits: dict[str, str]) -> list[str]:
        rows = [{"image": name, "answer": "x", "split": split} for name, split in splits.items()]
        annotations = write_jsonl(tmp_path / "mine.jsonl", rows)
        (tmp_path / "mine.yaml").write_text(f"reader: jsonl\nannotations: {annotations}\nimages: {folder}\n")
        assert main([str(tmp_path / "mine.yaml")]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.strip().removeprefix("warning: ") for line in lines if "warning: " in line]

    return report


def numbered(count: int, held_out: int) -> dict[str, str]:
    """0.png and so on, the last of them in val."""
    return {f"{number}.png": "val" if number >= count - held_out else "train" for number in range(count)}


def test_images_that_differ_are_no_leak(warnings: Report) -> None:
    assert warnings(numbered(12, 4)) == []


def test_a_copy_under_another_name(warnings: Report, folder: Path) -> None:
    (folder / "deeper").mkdir()
    shutil.copy(folder / "3.png", folder / "deeper" / "z.png")
    shutil.copy(folder / "4.png", folder / "y.png")
    assert warnings({**numbered(8, 0), "deeper/z.png": "val", "y.png": "test"}) == [
        "2 images are copies of files of another split under other names, such as deeper/z.png (val) and 3.png (train)"
    ]


def test_copies_within_a_split_are_no_leak(warnings: Report, folder: Path) -> None:
    shutil.copy(folder / "3.png", folder / "z.png")
    photo(4).save(folder / "y.jpg")
    assert warnings({**numbered(12, 4), "z.png": "train", "y.jpg": "train"}) == []


@pytest.mark.parametrize("change", ["quality", "size", "format"])
def test_a_near_copy(warnings: Report, folder: Path, change: str) -> None:
    if change == "quality":
        photo(3).save(folder / "near.jpg", quality=40)
    elif change == "size":
        photo(3).resize((61, 46), Image.Resampling.LANCZOS).save(folder / "near.jpg")
    else:
        photo(3).save(folder / "near.jpg", "WEBP", quality=60)
    assert warnings({**numbered(12, 4), "near.jpg": "val"}) == [
        "1 images look like images of another split, such as near.jpg (val) and 3.png (train); compare them"
    ]


def test_one_name_in_two_splits_is_said_once(warnings: Report, tmp_path: Path, folder: Path) -> None:
    rows = [{"image": f"{n}.png", "answer": "x", "split": s} for n, s in ((0, "train"), (1, "train"), (1, "test"))]
    annotations = write_jsonl(tmp_path / "twice.jsonl", rows)
    (tmp_path / "twice.yaml").write_text(f"reader: jsonl\nannotations: {annotations}\nimages: {folder}\n")
    cfg = check.load_card(str(tmp_path / "twice.yaml"))
    report = check.check_dataset("twice", cfg.datasets["twice"], cfg.model)
    assert report.warnings == ["1 images are in more than one split, such as 1.png"]


def test_drawings_on_an_empty_ground_are_told_apart(warnings: Report, folder: Path) -> None:
    """Most bits of their hashes are zero."""
    for number, scene in enumerate(drawn_scenes()[:10]):
        scene.save(folder / f"{number}.png")
    for number in (10, 11):  # white, with a small square of one colour or the other
        drawing = Image.new("RGB", (64, 64), "white")
        drawing.paste((200, 0, 0) if number == 10 else (0, 0, 200), (30, 30, 37, 37))
        drawing.save(folder / f"{number}.png")
    assert warnings(numbered(12, 6)) == []


def test_each_image_is_opened_once(warnings: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for name in ("image_bytes", "decode_pixels"):
        original = getattr(check, name)

        def counting(source: object, label: str, name: str = name, original: Callable = original) -> object:
            opened.append(f"{name} {Path(label).name}")
            return original(source, label)

        monkeypatch.setattr(check, name, counting)
    warnings(numbered(12, 4))
    assert sorted(opened) == sorted(f"{name} {n}.png" for n in range(12) for name in ("image_bytes", "decode_pixels"))
