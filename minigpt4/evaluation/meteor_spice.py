"""METEOR and SPICE: pycocoevalcap's scorers in a child process that can neither hang nor die unnoticed."""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.errors import MetricError
from minigpt4.evaluation.java import find_java, last_lines, metric_folder

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


_FILES = {
    "meteor": ("meteor-1.5.jar", "data/paraphrase-en.gz"),
    "spice": ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"),
}
_HOW_TO_GET = {
    "meteor": "reinstall it with `pip install --force-reinstall pycocoevalcap`",
    "spice": "unpack stanford-corenlp-full-2015-12-09.zip from nlp.stanford.edu there, or leave out spice",
}
_TIMEOUT = {"meteor": (300.0, 0.25), "spice": (900.0, 2.0)}
"""Seconds allowed: a part for starting and a part for every image."""

# METEOR reads its data through a file: URL made from its own path without decoding it, so that a space or
# any other character that a URL escapes makes the data unfindable.
_URL_SAFE = re.compile(r"[\w./\\:~-]+", re.ASCII)

_OPTIONS = {
    "meteor": ("-Dfile.encoding=UTF-8",),
    # SPICE's cache serializes by reflection, which Java 16 and later refuse unless told otherwise.
    "spice": (
        "-Dfile.encoding=UTF-8",
        *(
            f"--add-opens=java.base/java.{name}=ALL-UNNAMED"
            for name in ("lang", "math", "util", "util.concurrent", "net", "text", "io", "nio")
        ),
    ),
}


def check_java_scorer(metric: str) -> None:
    """Make sure that METEOR or SPICE can be computed here.

    Raises:
        MetricError: Java, pycocoevalcap or a file of the metric is missing.
    """
    folder = metric_folder(metric)
    missing = [name for name in _FILES[metric] if not (folder / name).is_file()]
    if missing:
        raise MetricError(
            f"{metric.upper()} needs {', '.join(missing)} in {folder}, where it is not: {_HOW_TO_GET[metric]}"
        )
    find_java()


def score_with_java(
    metric: str,
    references: Mapping[str, Sequence[str]],
    results: Mapping[str, str],
    timeout: float | None = None,
) -> tuple[float, dict[str, float]]:
    """METEOR or SPICE of tokenized captions.

    Args:
        metric: `meteor` or `spice`.
        references: tokenized references of every image.
        results: one tokenized caption an image, the same keys.
        timeout: seconds after which the metric is given up; by default grows with the number of images.

    Returns:
        (score of the corpus, score of every image).

    Raises:
        MetricError: the metric cannot be computed here, failed, or took too long.
    """
    check_java_scorer(metric)
    if timeout is None:
        base, per_image = _TIMEOUT[metric]
        timeout = base + per_image * len(references)
    with tempfile.TemporaryDirectory(prefix="minigpt4-") as name:
        work = Path(name)
        _place_scorer(metric, work)
        captions = {
            # METEOR separates captions by three bars.
            "references": {key: [_no_bars(text) for text in texts] for key, texts in references.items()},
            "results": {key: [_no_bars(text)] for key, text in results.items()},
        }
        (work / "input.json").write_text(json.dumps(captions), encoding="utf-8")
        stderr = _run_worker(metric, work, timeout)
        answer = _read_answer(metric, work / "output.json", stderr)
    return float(answer["score"]), {key: float(value) for key, value in answer["per_image"].items()}


def _no_bars(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


def _place_scorer(metric: str, work: Path) -> None:
    """Copy the scorer into `work` where the installed one cannot be used in its place."""
    folder = metric_folder(metric)
    unusable = metric == "meteor" and not _URL_SAFE.fullmatch(str(folder))
    # SPICE writes its cache and its temporary files beside itself.
    unusable = unusable or (metric == "spice" and not _writable(folder))
    if not unusable:
        return
    if metric == "meteor" and not _URL_SAFE.fullmatch(str(work)):
        raise MetricError(
            f"METEOR cannot run from a path with a space or a special character, and neither {folder} nor the "
            f"temporary folder {work.parent} is without: set TMPDIR to a folder with a plain name"
        )
    package = work / "pycocoevalcap"
    shutil.copytree(folder, package / metric)
    for copied, _, _ in os.walk(package):
        # A copy of a read-only folder is read-only too.
        os.chmod(copied, 0o700)
    # A package proper comes before the installed one, which has no __init__.py and would be merged with it.
    (package / "__init__.py").touch()


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def _run_worker(metric: str, work: Path, timeout: float) -> bytes:
    """Run the child; returns what it wrote to stderr."""
    env = find_java().environment(*_OPTIONS[metric])
    env["PYTHONPATH"] = os.pathsep.join([str(work), *(entry or os.getcwd() for entry in sys.path)])
    # The working folder comes first on the child's path, so it is the folder that may hold the copy.
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt4.evaluation.meteor_spice", metric, "input.json", "output.json"],
        cwd=work,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        raise MetricError(
            f"{metric.upper()} gave no answer within {timeout:.0f} s and was stopped (Java: {find_java().path})"
        ) from None
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child and the Java it started, which share a process group of their own."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _read_answer(metric: str, path: Path, stderr: bytes) -> dict:
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MetricError(f"{metric.upper()} died without an answer: {last_lines(stderr)}") from None
    if "error" in answer:
        said = f"; it said: {last_lines(stderr)}" if stderr.strip() else ""
        raise MetricError(f"{metric.upper()} failed: {answer['error']} (Java: {find_java().path}){said}")
    return answer


if __name__ == "__main__":
    main()
