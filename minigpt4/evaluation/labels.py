"""Names of checkpoints in tables, and of the files that hold their predictions: one for each checkpoint."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

_MAX_NAME_BYTES = 180
"""Longest name of a predictions file; file systems allow 255 bytes, and temporary names are longer."""


def checkpoint_labels(paths: Sequence[str]) -> list[str]:
    """Different names for people, as short as they can be.

    "epoch 3" for checkpoint_3.pth, else the file's name without its suffix and with spaces for underscores. Where these
    are equal: the file's name; or the folder's name before the label; or both; or else the path.

    Args:
        paths: paths of different files.
    """
    listed = [_forms(path) for path in paths]
    labels = [forms[0] for forms in listed]
    for label in _repeated(labels):
        group = [index for index, forms in enumerate(listed) if forms[0] == label]
        number = next(n for n in range(len(listed[0])) if len({listed[index][n] for index in group}) == len(group))
        for index in group:
            labels[index] = listed[index][number]
    while repeated := _repeated(labels):
        # A longer label may meet another file's: all of them become paths, one after the other if need be.
        labels = [forms[-1] if label in repeated else label for forms, label in zip(listed, labels, strict=True)]
    return labels


def predictions_file(label: str, taken: Collection[str]) -> str:
    """Name of the file that holds a checkpoint's predictions: predictions_epoch_3.json for "epoch 3".

    Letters of every script are kept, other characters become underscores. A name that is too long, or taken, ends
    with a hash of the label.

    Args:
        label: label of the checkpoint.
        taken: names of other files in the folder. Names that differ in case only are one name, as on macOS and Windows.
    """
    stem = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", label))
    name = f"predictions_{stem}.json"
    if len(name.encode()) <= _MAX_NAME_BYTES and _folded(name) not in map(_folded, taken):
        return name
    return f"predictions_{stem[:40]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}.json"


def _forms(path: str) -> list[str]:
    """What a checkpoint may be called, from short to long; the last form is its path."""
    # A file name that is not UTF-8 has lone surrogates, which the results' JSON could not tell apart.
    file = Path(path.encode("utf-8", "backslashreplace").decode())
    epoch = re.fullmatch(r"checkpoint_(\d+)", file.stem)
    label = f"epoch {epoch.group(1)}" if epoch else file.stem.replace("_", " ")
    folder = file.parent.name
    return [label, file.name, f"{folder} {label}".lstrip(), str(Path(folder, file.name)), str(file)]


def _repeated(labels: Sequence[str]) -> list[str]:
    return [label for label, count in Counter(labels).items() if count > 1]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
