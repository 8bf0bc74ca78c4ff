from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError
from minigpt4.common.schema import DatasetConfig
from minigpt4.datasets.builders import images_folder, load_records, select_splits
from tests.datasets.conftest import write_jsonl


def jsonl_config(tmp_path: Path, rows: int, **options) -> DatasetConfig:
    content = [{"image": f"{number}.jpg", "answer": "x"} for number in range(rows)]
    return DatasetConfig(reader="jsonl", annotations=str(write_jsonl(tmp_path / "a.jsonl", content)), **options)


def test_rows_without_a_split_are_for_training(tmp_path: Path) -> None:
    assert {record.split for record in load_records("mine", jsonl_config(tmp_path, 50))} == {"train"}


def test_val_fraction_is_a_fixed_share_of_names(tmp_path: Path) -> None:
    few = load_records("mine", jsonl_config(tmp_path, 500, val_fraction=0.2))
    many = load_records("mine", jsonl_config(tmp_path, 1000, val_fraction=0.2))
    assert many[:500] == few  # adding rows moves no picture
    share = sum(record.split == "val" for record in many) / 1000
    assert 0.16 < share < 0.24


def test_a_split_of_its_own_stays(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "1.jpg", "answer": "x", "split": "test"}] * 5)
    cfg = DatasetConfig(reader="jsonl", annotations=str(path), val_fraction=0.99)
    assert {record.split for record in load_records("mine", cfg)} == {"test"}


def test_loading_raises_on_the_first_bad_row_and_counts_the_others(tmp_path: Path) -> None:
    rows = [{"image": "1.jpg", "answer": "x"}, {"image": "2.jpg"}, {"image": "3.jpg"}, {"image": "4.jpg"}]
    cfg = DatasetConfig(reader="jsonl", annotations=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no 'answer'.*\(and 2 more rows\)"):
        load_records("mine", cfg)


def test_no_row_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no record"):
        load_records("mine", jsonl_config(tmp_path, 0))


def test_a_missing_split_names_those_that_exist(tmp_path: Path) -> None:
    records = load_records("mine", jsonl_config(tmp_path, 3))
    with pytest.raises(MissingSplitError, match=r"no split 'val'; the annotations have train \(3\).*val_fraction"):
        select_splits("mine", records, ["train", "val"])


def test_splits_can_be_joined_in_the_order_of_the_annotations(tmp_path: Path) -> None:
    records = load_records("mine", jsonl_config(tmp_path, 100, val_fraction=0.5))
    assert select_splits("mine", records, ["val", "train"]) == records
    assert 0 < len(select_splits("mine", records, ["val"])) < 100


def test_missing_paths_name_key_and_variable(tmp_path: Path) -> None:
    cfg = DatasetConfig(reader="jsonl", annotations="no.jsonl")
    with pytest.raises(ConfigError, match=r"datasets\.mine\.annotations: file no\.jsonl .*MINIGPT4_DATA"):
        load_records("mine", cfg)
    with pytest.raises(ConfigError, match=r"datasets\.mine\.images: folder nowhere .*MINIGPT4_DATA"):
        images_folder("mine", jsonl_config(tmp_path, 1, images="nowhere"))


def test_images_lie_beside_the_annotations_unless_told(tmp_path: Path) -> None:
    assert images_folder("mine", jsonl_config(tmp_path, 1)) == tmp_path
    folder = DatasetConfig(reader="folder", images=str(tmp_path))  # either key will do for a folder
    assert images_folder("mine", folder) == tmp_path
    folder = DatasetConfig(reader="folder", annotations=str(tmp_path))
    assert images_folder("mine", folder) == tmp_path
