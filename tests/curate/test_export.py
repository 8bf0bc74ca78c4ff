"""Accepted samples, as the card `cc_sbu_align` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.errors import DataError
from minigpt4.common.schema import DatasetConfig
from minigpt4.curate.export import export
from minigpt4.curate.ledger import Ledger
from minigpt4.datasets.builders import images_folder, load_records
from minigpt4.processors.image import open_image
from tests.curate.conftest import described, fill, kept, refined, save_images


def decide(ledger: Ledger, sample: int, decision: str, **more: str) -> None:
    ledger.append([{"sample": str(sample), "step": "review", "decision": decision, **more}])


@pytest.fixture
def accepted(ledger: Ledger) -> Ledger:
    """Four samples: accepted, edited, rejected, pending."""
    fill(ledger, 4, lambda n: described(n, "raw"), lambda n: refined(n, f"Text “{n}”."), kept)
    decide(ledger, 0, "accept")
    decide(ledger, 1, "edit", text="Edited.")
    decide(ledger, 2, "reject")
    return ledger


def test_the_card_reads_what_was_accepted(accepted: Ledger, tmp_path: Path) -> None:
    images, out = save_images(tmp_path / "image", 4), tmp_path / "out"
    assert export(accepted.states(), images, out) == 2
    card = DatasetConfig(reader="cc_sbu_align", annotations=str(out / "filter_cap.json"), images=str(out / "image"))
    records = load_records("cc_sbu_align", card)
    assert [(record.image_id, record.answers) for record in records] == [("0", ("Text “0”.",)), ("1", ("Edited.",))]
    for record in records:
        assert open_image(images_folder("cc_sbu_align", card) / record.image).size == (8, 8)


def test_an_export_follows_the_decisions(accepted: Ledger, tmp_path: Path) -> None:
    images, out = save_images(tmp_path / "image", 4), tmp_path / "out"
    export(accepted.states(), images, out)
    before = (out / "filter_cap.json").read_bytes()
    export(accepted.states(), images, out)
    assert (out / "filter_cap.json").read_bytes() == before
    decide(accepted, 0, "reject")
    decide(accepted, 3, "accept")
    assert export(accepted.states(), images, out) == 2
    assert sorted(path.name for path in (out / "image").iterdir()) == ["1.jpg", "3.jpg"]


def test_an_image_of_other_content_is_replaced(accepted: Ledger, tmp_path: Path) -> None:
    """Also where it has the same size."""
    images, out = save_images(tmp_path / "image", 4), tmp_path / "out"
    export(accepted.states(), images, out)
    content = (images / "1.jpg").read_bytes()
    changed = content[:-4] + bytes(255 - byte for byte in content[-4:])
    (images / "1.jpg").write_bytes(changed)
    export(accepted.states(), images, out)
    assert (out / "image" / "1.jpg").read_bytes() == changed


def test_a_folder_of_something_else_is_left_alone(accepted: Ledger, tmp_path: Path) -> None:
    """The published images are numbered as well."""
    out = save_images(tmp_path / "cc_sbu_align" / "image", 4).parent
    with pytest.raises(DataError, match=r"cc_sbu_align holds files that curation did not write"):
        export(accepted.states(), save_images(tmp_path / "image", 4), out)
    assert len(list((out / "image").iterdir())) == 4


def test_nothing_accepted_is_an_error(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 1)
    with pytest.raises(DataError, match="no sample is accepted yet"):
        export(ledger.states(), tmp_path, tmp_path / "out")


def test_a_missing_image_is_named(accepted: Ledger, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.jpg does not exist; run describe again"):
        export(accepted.states(), save_images(tmp_path / "image", 1), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(accepted: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out cannot be written: "):
        export(accepted.states(), save_images(tmp_path / "image", 4), tmp_path / "file" / "out")
