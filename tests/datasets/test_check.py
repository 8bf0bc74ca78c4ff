from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.datasets.check import main
from tests.datasets.conftest import write_jsonl
from tests.datasets.shards.conftest import broken_sample, make_shards, numbered, write_shard

ROWS = 30


@pytest.fixture
def card(tmp_path: Path, images: Path) -> Path:
    rows = [
        {"image": f"{number % 20}.png", "answer": f"image {number}", "split": "val" if number == 3 else None}
        for number in range(ROWS)
    ]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    card = tmp_path / "mine.yaml"
    card.write_text(f"reader: jsonl\nannotations: {path}\nimages: {images}\n")
    return card


def spoil(tmp_path: Path, numbers: range) -> None:
    """Rows that hold no answer."""
    path = tmp_path / "mine.jsonl"
    lines = path.read_text().splitlines()
    for number in numbers:
        lines[number] = json.dumps({"image": f"{number}.png"})
    path.write_text("\n".join(lines))


def test_a_good_data_set(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(card)]) == 0
    out = capsys.readouterr().out
    assert "mine: 30 well-formed rows (train 29, val 1)" in out
    assert "answers: 30, 2 to 2 words long" in out
    assert "example: 0.png | answers: image 0" in out
    assert "bad rows: none" in out
    assert "warning: in more than one split: 1 image, such as 3.png" in out


def test_two_spellings_of_one_file_are_seen_in_both_splits(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": name, "answer": "x", "split": split} for name, split in (("0.png", "train"), ("./0.png", "val"))]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    assert main([str(card)]) == 0
    out = capsys.readouterr().out
    assert "copies of files of another split under other names: 1 image" in out and "./0.png (val)" in out


def test_bad_rows_and_images_are_named(
    card: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, range(2, 4))
    (images / "7.png").unlink()
    (images / "8.png").write_bytes(b"broken")
    assert main([str(card)]) == 1
    out = capsys.readouterr().out
    assert "bad rows: 4" in out
    assert "mine.jsonl, line 3: no 'answer'" in out
    assert "mine.jsonl, line 8: image" in out and "7.png does not exist" in out
    assert "mine.jsonl, line 9: image" in out and "8.png cannot be read" in out
    assert main([str(card), "--no-images"]) == 1
    assert "bad rows: 2" in capsys.readouterr().out


def test_the_first_twenty_are_shown_unless_all_are_asked_for(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, range(25))
    assert main([str(card), "--no-images"]) == 1
    out = capsys.readouterr().out
    assert out.count("no 'answer'") == 20 and "... and 5 more; --all shows them" in out
    assert main([str(card), "--no-images", "--all"]) == 1
    assert capsys.readouterr().out.count("no 'answer'") == 25


def test_every_dataset_of_a_run(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"datasets: {{a: {{card: {card}}}, b: {{card: {card}, val_fraction: 0.5}}}}")
    assert main(["--cfg-path", str(run)]) == 0
    out = capsys.readouterr().out
    assert "a: 30 well-formed rows" in out and "b: 30 well-formed rows" in out


def test_a_card_may_have_any_name(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = card.rename(card.with_name("my birds.v2 [a=b].yaml"))
    assert main([str(odd), "--no-images", "--options", "datasets.my_birds_v2__a_b_.val_fraction=0.5"]) == 0
    assert "my_birds_v2__a_b_: 30 well-formed rows" in capsys.readouterr().out


def test_an_image_id_comes_once_in_the_split_that_is_evaluated(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": "0.png", "answer": "x", "split": split} for split in ("train", "train", "test", "test")]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    assert main([str(card)]) == 1
    out = capsys.readouterr().out
    assert "1 of the rows of train repeat an image id, the first in" in out
    assert "bad rows: 1" in out and "mine.jsonl, line 4: the image id '0' is also that of" in out


def test_a_validation_without_a_row_is_warned_of(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"image": "0.png", "answer": "x"}])
    assert main([str(card), "--options", "datasets.mine.val_fraction=0.001"]) == 0
    assert "val_fraction 0.001 of 1 rows gives no split 'val'" in capsys.readouterr().out


def test_annotations_are_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"image": "0.png", "answer": "x"}])
    for argument, message in ((str(path), "a card is a YAML file"), ("mine", "no card 'mine'")):
        with pytest.raises(SystemExit):
            main([argument])
        err = capsys.readouterr().err
        assert message in err and "check.yaml" not in err


def test_odd_paths_and_texts_are_named_and_printed(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["a" * 5000, "a\0b.png", "/nowhere/a.png", "../a.png", ".hidden", "\ud800.png", "..", "~", "0.png/1.png"]
    rows = [{"image": "0.png", "answer": "\ud800 x"}, *({"image": name, "answer": "x", "id": "i"} for name in odd)]
    path = write_jsonl(tmp_path / "odd.jsonl", rows)
    (tmp_path / "odd.yaml").write_text(f"reader: jsonl\nannotations: {path}\nimages: {images}\nval_fraction: 0.5\n")
    assert main([str(tmp_path / "odd.yaml"), "--all"]) == 1
    out = capsys.readouterr().out
    out.encode()  # no lone surrogate
    assert "answers: \ufffd x" in out and f"bad rows: {len(odd)}" in out
    for number in range(2, len(odd) + 2):
        assert f"odd.jsonl, line {number}: image" in out


def test_an_image_outside_the_folder_may_be_named(tmp_path: Path, images: Path) -> None:
    rows = [{"image": f"../{images.name}/0.png", "answer": "x"}, {"image": str(images / "1.png"), "answer": "x"}]
    path = write_jsonl(tmp_path / "out.jsonl", rows)
    (tmp_path / "out.yaml").write_text(f"reader: jsonl\nannotations: {path}\nimages: {images}\n")
    assert main([str(tmp_path / "out.yaml")]) == 0


@pytest.mark.parametrize("content", ["", "1\n2\n3\n", "\n\n"])
def test_files_without_a_record(tmp_path: Path, images: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.jsonl").write_text(content)
    (tmp_path / "no.yaml").write_text(f"reader: jsonl\nannotations: {tmp_path}/no.jsonl\nimages: {images}\n")
    assert main([str(tmp_path / "no.yaml")]) == 1
    assert "no: 0 well-formed rows" in capsys.readouterr().out


def test_options_reach_the_card(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(card), "--no-images", "--options", "datasets.mine.val_fraction=0.5"]) == 0
    assert "train 29" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flickr30"], "did you mean 'flickr30k'?"),
        (["no.yaml"], "configuration file no.yaml does not exist"),
        (["flickr30k", "--options", "paths.data_root=/nowhere"], "MINIGPT4_DATA"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code not in (0, 1)
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_card_or_a_run_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "give a CARD or --cfg-path" in capsys.readouterr().err


class TestShards:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> list[Path]:
        return make_shards(tmp_path / "wide", 5)

    @pytest.fixture
    def card(self, shards: list[Path], tmp_path: Path) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(f"builder: webdataset\nshards: '{shards[0].parent}/{{00000..00004}}.tar'\n")
        return str(path)

    def test_good_shards(self, card: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([card]) == 0
        out = capsys.readouterr().out
        assert "mine: 30 samples in 5 shards (train 30)" in out
        assert "answers: 30, 2 to 2 words long, median 2" in out
        assert "example: 00000.tar/00000.png | answers: caption 0" in out
        assert "bad rows: none" in out

    def test_bad_shards_and_samples_are_named(
        self, card: str, shards: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        shards[0].unlink()
        broken_sample(shards[1], 2, png=b"no image")
        broken_sample(shards[2], 5, txt=b"")
        shards[3].write_bytes(shards[3].read_bytes()[:-12_000])
        write_shard(shards[4], [*numbered(24, 3), ("x", {"png": b"x"}), ("y", {"txt": b"y"})])
        assert main([card]) == 1
        out = capsys.readouterr().out
        assert f"{shards[0]}: it does not exist" in out
        assert f"image 00008.png in {shards[1]} cannot be read" in out
        assert f"{shards[2]}, sample 00017: the caption in 00017.txt is empty" in out
        assert f"{shards[3]}: truncated" in out
        assert f"warning: {shards[4]}: 1 images without a caption are left out" in out
        assert f"warning: {shards[4]}: 1 captions without an image are left out" in out
        assert "bad rows: 4" in out

    def test_without_images_only_the_index_is_made(
        self, card: str, shards: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken_sample(shards[1], 2, png=b"no image")
        assert main([card, "--no-images"]) == 0
        out = capsys.readouterr().out
        assert "mine: 30 samples in 5 shards" in out and "answers:" not in out
        assert (shards[0].parent / "minigpt4_index" / "shards.json").is_file()

    def test_a_shipped_card_without_its_data(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["cc_sbu", "--options", f"paths.data_root={tmp_path}"]) == 1
        out = capsys.readouterr().out
        assert "cc_sbu: 0 samples in 0 shards" in out
        assert f"{tmp_path}/cc_sbu/cc_sbu_dataset/00000.tar: it does not exist" in out
        assert "... and 1,236 more" in out
