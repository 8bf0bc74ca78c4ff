"""Accepted samples -> `filter_cap.json` and `image/`, as the card `cc_sbu_align` reads them."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from minigpt4.common.errors import DataError
from minigpt4.common.files import remove_temporary_files, write_atomically, write_text, writing
from minigpt4.curate.ledger import SampleState

ANNOTATIONS, IMAGES = "filter_cap.json", "image"
MARKER = "CURATED.txt"
"""Marks a folder that may be written again, unlike the published one, whose images are numbered as well."""


def export(states: Mapping[str, SampleState], images: Path, out: Path) -> int:
    """Write the folder; images of samples that are no longer accepted are removed from it.

    Args:
        states: all samples by id.
        images: folder of {sample}.jpg.
        out: folder to write.

    Returns:
        Number of samples written.

    Raises:
        DataError: Nothing is accepted, `out` holds something else or cannot be written, or an image is missing.
    """
    accepted = [state for state in states.values() if state.accepted]
    if not accepted:
        raise DataError(
            "no sample is accepted yet; run python -m minigpt4.curate review (--accept-all: all that the rules kept)"
        )
    marker, folder = out / MARKER, out / IMAGES
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise DataError(f"{out} holds files that curation did not write; set curation.export_dir to another folder")
    for state in accepted:
        if not (images / f"{state.sample}.jpg").is_file():
            raise DataError(f"{images / state.sample}.jpg does not exist; run describe again to restore it")
    rows = [{"image_id": state.sample, "caption": state.text} for state in accepted]
    with writing(out):
        for place in (out, folder):
            remove_temporary_files(place, "*")
        write_text(marker, "Written by python -m minigpt4.curate export, which may write it again.\n")
        for state in accepted:
            source, target = images / f"{state.sample}.jpg", folder / f"{state.sample}.jpg"
            if not target.is_file() or not filecmp.cmp(source, target, shallow=False):
                write_atomically(target, partial(shutil.copyfile, source))
        write_text(out / ANNOTATIONS, json.dumps({"annotations": rows}, ensure_ascii=False, indent=0))
        for path in folder.glob("*.jpg"):
            if path.stem not in states or not states[path.stem].accepted:
                path.unlink()
    return len(rows)
