"""The child process in which METEOR or SPICE runs: `java_worker METRIC INPUT OUTPUT`.

pycocoevalcap's METEOR waits for ever after any error: the lock taken by `compute_score` is never released,
and the object's destructor waits for it. So it lives here, alone, writes what happened to a file and leaves by
`os._exit`, which runs no destructor.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

SCORERS = {
    "meteor": ("pycocoevalcap.meteor.meteor", "Meteor"),
    "spice": ("pycocoevalcap.spice.spice", "Spice"),
}

_KEPT: list[Any] = []
"""Scorers, kept from being destroyed when the function that made them returns: that is where METEOR would wait."""


def _drain(stream: Any, lines: collections.deque[str]) -> None:
    """Keep the last lines of Java's stderr; a pipe that nobody reads would block Java when it is full."""
    for line in iter(stream.readline, b""):
        lines.append(line.decode(errors="replace").strip())


def _score(metric: str, references: dict[str, list[str]], results: dict[str, list[str]]) -> dict[str, Any]:
    module, name = SCORERS[metric]
    scorer = getattr(importlib.import_module(module), name)()
    _KEPT.append(scorer)
    java_lines: collections.deque[str] = collections.deque(maxlen=4)
    process = getattr(scorer, "meteor_p", None)
    reader = None
    if process is not None:
        reader = threading.Thread(target=_drain, args=(process.stderr, java_lines), daemon=True)
        reader.start()
    try:
        score, scores = scorer.compute_score(references, results)
    except BaseException as error:
        if reader is not None:
            reader.join(timeout=2)
        said = " | ".join(line for line in java_lines if line and not line.startswith(("at ", "NOTE:")))
        return {"error": f"{type(error).__name__}: {error}" + (f" (Java: {said})" if said else "")}
    if metric == "spice":
        # SPICE answers in the order of the sorted ids, with a score for every kind of word.
        per_image = {key: item["All"]["f"] for key, item in zip(sorted(references), scores, strict=True)}
    else:
        per_image = dict(zip(references, scores, strict=True))
    return {"score": float(score), "per_image": {key: float(value) for key, value in per_image.items()}}


def main() -> None:
    """Score the captions in the input file and write the scores, or the error, to the output file."""
    metric, source, target = sys.argv[1:]
    try:
        captions = json.loads(Path(source).read_text(encoding="utf-8"))
        answer = _score(metric, captions["references"], captions["results"])
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(target).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    os._exit(1 if "error" in answer else 0)


if __name__ == "__main__":
    main()
