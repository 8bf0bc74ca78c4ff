"""What was accepted -> `filter_cap.json` and `image/`, as the card `cc_sbu_align` reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from minigpt4.common.errors import DataError
from minigpt4.common.files import write_atomically
from minigpt4.curate.ledger import ACCEPTED, Case

ANNOTATIONS, IMAGES = "filter_cap.json", "image"
MARKER = "CURATED.txt"
"""Tells a folder that may be written again from the published one, whose pictures are numbered as well."""


def export(cases: dict[str, Case], pictures: Path, out: Path) -> int:
    """Write the folder; pictures of samples that are not accepted (any more) are taken out of it.

    Args:
        cases: All samples.
        pictures: Folder of {sample}.jpg.
        out: The folder to write.

    Returns:
        Number of samples written.

    Raises:
        DataError: Nothing is accepted, `out` holds something else, or a picture is gone.
    """
    accepted = [case for case in cases.values() if case.status == ACCEPTED]
    if not accepted:
        raise DataError("no sample is accepted yet; python -m minigpt4.curate review decides (--accept-all: all kept)")
    folder = out / IMAGES
    marker = out / MARKER
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise DataError(f"{out} holds something that no curation wrote; set curation.export_dir to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("Written by python -m minigpt4.curate export, which may write it again.\n", encoding="utf-8")
    for case in accepted:
        _copy(pictures / f"{case.sample}.jpg", folder / f"{case.sample}.jpg")
    rows = [{"image_id": case.sample, "caption": case.text} for case in accepted]
    text = json.dumps({"annotations": rows}, ensure_ascii=False, indent=0)
    write_atomically(out / ANNOTATIONS, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    wanted = {case.sample for case in accepted}
    for path in folder.glob("*.jpg"):
        if path.stem not in wanted:
            path.unlink()
    return len(rows)


def _copy(source: Path, target: Path) -> None:
    try:
        if not target.is_file() or target.stat().st_size != source.stat().st_size:
            write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
    except OSError as error:
        raise DataError(
            f"{source} cannot be copied: {error.strerror}; run describe again to keep the picture"
        ) from error
