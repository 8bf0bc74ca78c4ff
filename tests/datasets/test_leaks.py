"""The same image in several splits, and in training and evaluation; through the commands that report it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigpt4.datasets import check, leaks
from minigpt4.datasets.check import main
from minigpt4.datasets.leaks import Fingerprint, ImageSet, Leaks, TrainingRecord, find_leaks, fingerprints
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
        "copies of files of another split under other names: 2 images, such as deeper/z.png (val) and 3.png (train)"
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
        "resembling images of another split: 1 image, such as near.jpg (val) and 3.png (train); compare them"
    ]


def test_one_name_in_two_splits_is_said_once(warnings: Report, tmp_path: Path, folder: Path) -> None:
    rows = [{"image": f"{n}.png", "answer": "x", "split": s} for n, s in ((0, "train"), (1, "train"), (1, "test"))]
    annotations = write_jsonl(tmp_path / "twice.jsonl", rows)
    (tmp_path / "twice.yaml").write_text(f"reader: jsonl\nannotations: {annotations}\nimages: {folder}\n")
    cfg = check.load_card(str(tmp_path / "twice.yaml"))
    report = check.check_dataset("twice", cfg.datasets["twice"], cfg.model)
    assert report.warnings == ["in more than one split: 1 image, such as 1.png"]


def test_drawings_on_an_empty_ground_are_told_apart(warnings: Report, folder: Path) -> None:
    """Most bits of their hashes are zero."""
    for number, scene in enumerate(drawn_scenes()[:10]):
        scene.save(folder / f"{number}.png")
    for number in (10, 11):  # white, with a small square of one colour or the other
        drawing = Image.new("RGB", (64, 64), "white")
        drawing.paste((200, 0, 0) if number == 10 else (0, 0, 200), (30, 30, 37, 37))
        drawing.save(folder / f"{number}.png")
    assert warnings({**numbered(12, 6), "10.png": "train"}) == []


def test_each_image_is_opened_once(warnings: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for name in ("image_bytes", "decode_pixels"):
        original = getattr(leaks, name)

        def counting(source: object, label: str, name: str = name, original: Callable = original) -> object:
            opened.append(f"{name} {Path(label).name}")
            return original(source, label)

        monkeypatch.setattr(leaks, name, counting)
    warnings(numbered(12, 4))
    assert sorted(opened) == sorted(f"{name} {n}.png" for n in range(12) for name in ("image_bytes", "decode_pixels"))


def test_pixels_in_another_file_are_no_near_copy(warnings: Report, folder: Path) -> None:
    photo(3).save(folder / "same.bmp")
    assert warnings({**numbered(12, 4), "same.bmp": "val"}) == [
        "with the pixels of other files of another split: 1 image, such as same.bmp (val) and 3.png (train)"
    ]


def images(folder: Path, names: list[str], **changes: Any) -> ImageSet:
    """The images of a dataset whose ids are the stems of their file names."""
    listed = tuple((Path(name).stem, name) for name in names)
    values = {"name": "birds", "splits": ("train",), "count": len(names), "source": "a" * 64, "folder": str(folder)}
    return ImageSet(**values | {"listed": listed} | changes)


def leaks_of(evaluated: ImageSet, *trained: ImageSet) -> Leaks:
    """What the evaluation finds, with all images opened, of a record that went through a checkpoint's metadata."""
    record = TrainingRecord.from_metadata(TrainingRecord(sets=trained).to_metadata(), "a.pth")
    assert record == TrainingRecord(sets=trained)
    paths = {path for item in (evaluated, *trained) for path in item.paths()}
    prints = {path: found for path, found in fingerprints(paths) if isinstance(found, Fingerprint)}
    return find_leaks(evaluated, record, prints)


def counts(found: Leaks) -> tuple[int, ...]:
    return found.images, found.ids, found.files, found.pixels, found.near_copies


def test_images_of_their_own_are_no_leak(folder: Path) -> None:
    found = leaks_of(images(folder, ["8.png", "9.png"]), images(folder, [f"{n}.png" for n in range(8)]))
    assert counts(found) == (0, 0, 0, 0, 0) and found.trained_images == 8 and not found.is_leak


def test_images_of_several_datasets_are_counted_once(folder: Path) -> None:
    trained = [images(folder, [f"{n}.png" for n in numbers]) for numbers in (range(6), range(2, 8))]
    assert leaks_of(images(folder, ["9.png"]), *trained).trained_images == 8


def test_each_way_in_which_an_image_was_trained_on_is_counted(folder: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held out"
    held_out.mkdir()
    shutil.copy(folder / "0.png", held_out / "copy.png")
    photo(1).save(held_out / "pixels.bmp")
    photo(2).save(held_out / "near.jpg", quality=40)
    photo(50).save(held_out / "3.png")  # another image with the id of one in training
    photo(51).save(held_out / "new.png")
    names = ["copy.png", "pixels.bmp", "near.jpg", "3.png", "new.png"]
    trained = images(folder, [f"{n}.png" for n in range(8)])
    found = leaks_of(images(held_out, names), trained)
    assert counts(found) == (4, 1, 1, 2, 1)
    assert found.examples == ("copy.png and 0.png", "pixels.bmp and 1.png", "near.jpg and 2.png")
    # The ids of another dataset mean other images.
    other = images(held_out, names, name="fish", source="b" * 64)
    assert counts(leaks_of(other, trained)) == (3, 0, 1, 2, 1)


def test_the_split_trained_on_is_a_leak_by_all_counts(folder: Path) -> None:
    trained = images(folder, ["0.png", "1.png"])
    assert counts(leaks_of(trained, trained)) == (2, 2, 2, 2, 0)


def test_images_that_are_gone_are_compared_by_id_and_path(folder: Path, tmp_path: Path) -> None:
    found = leaks_of(images(folder, ["0.png"]), images(tmp_path / "gone", ["0.png", "7.png"]))
    assert counts(found) == (1, 1, 0, 0, 0) and found.not_opened == 2


def test_too_many_images_are_known_by_their_annotations(folder: Path) -> None:
    many = images(folder, ["0.png", "1.png"], count=5_000_000, listed=None)
    found = leaks_of(images(folder, ["0.png"]), many)
    assert counts(found) == (1, 1, 0, 0, 0) and found.not_opened == 5_000_000
    assert counts(leaks_of(images(folder, ["0.png"], splits=("test",)), many)) == (0, 0, 0, 0, 0)


def test_a_run_adds_to_what_its_first_checkpoint_was_trained_on(tmp_path: Path) -> None:
    one, two = images(tmp_path, ["0.png"]), images(tmp_path, ["1.png"], name="fish")
    record = TrainingRecord(sets=(two,)).after(TrainingRecord(sets=(one, two)))
    assert record.sets == (two, one) and record.complete
    assert not TrainingRecord(sets=(two,)).after(None).complete


WHOLE = TrainingRecord(sets=(images(Path("birds"), ["0.png"]),)).to_metadata()
DAMAGED = ["", "[]", "{}", '{"sets": [{}]}', '{"sets": [], "more": 1}', "[" * 10_000, WHOLE[:-9]]
DAMAGED += [WHOLE.replace('"count": 1', count) for count in ('"count": "1"', '"count": null')]
DAMAGED += [WHOLE.replace("birds", wrong) for wrong in ("\\u0000", '", "folder": 3, "x": "')]
DAMAGED += [
    WHOLE.replace('"listed": "', wrong) for wrong in ('"listed": "AAAA', '"listed": "!', '"listed": {}, "x": "')
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_not_used(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert text != WHOLE and TrainingRecord.from_metadata(text, "a.pth") is None
    assert "a.pth: the record of what it was trained on is damaged" in caplog.text


def test_a_record_stays_small(tmp_path: Path) -> None:
    names = [f"{number * 7919 % 10**10:010d}.jpg" for number in range(29_000)]
    record = TrainingRecord(sets=(images(tmp_path, names),))
    assert len(record.to_metadata()) < 500_000
    assert TrainingRecord.from_metadata(record.to_metadata(), "a.pth") == record
