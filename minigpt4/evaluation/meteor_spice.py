"""METEOR and SPICE: pycocoevalcap's Java scorers, in a child process that can neither hang nor die unnoticed.

The evaluation calls `score_with_java`, which writes the captions to a file, starts
`python -m minigpt4.evaluation.meteor_spice METRIC INPUT OUTPUT`, waits no longer than a timeout, and ends the child
together with the Java that it started. The second half of this file runs in the child, and imports nothing heavy.
"""

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
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import MetricError
from minigpt4.evaluation.java import find_java, last_lines, metric_folder


@dataclass(frozen=True)
class JavaScorer:
    """One of pycocoevalcap's scorers.

    Attributes:
        module: module of the scorer.
        name: class of the scorer.
        files: files that must be in its folder.
        remedy: what to do where one of them is missing.
        seconds: timeout for starting.
        seconds_per_image: timeout added for each image.
        options: JVM options.
    """

    module: str
    name: str
    files: tuple[str, ...]
    remedy: str
    seconds: float
    seconds_per_image: float
    options: tuple[str, ...] = ("-Dfile.encoding=UTF-8",)


SPICE_JARS = "MINIGPT4_SPICE_JARS"
"""Environment variable: the folder of SPICE's two large jars, which no package brings along."""
_REFLECTED = ("lang", "math", "util", "util.concurrent", "net", "text", "io", "nio")
"""Packages that SPICE's cache serializes by reflection, which Java 16 and later refuse unless told otherwise."""
SCORERS = {
    "meteor": JavaScorer(
        module="pycocoevalcap.meteor.meteor",
        name="Meteor",
        files=("meteor-1.5.jar", "data/paraphrase-en.gz"),
        remedy="reinstall it with `pip install --force-reinstall pycocoevalcap`",
        seconds=300,
        seconds_per_image=0.25,
    ),
    "spice": JavaScorer(
        module="pycocoevalcap.spice.spice",
        name="Spice",
        files=("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"),
        remedy=(
            "download https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip and put these two jars "
            f"of it there, or anywhere else and set {SPICE_JARS} to their folder; or leave spice out of the metrics"
        ),
        seconds=900,
        seconds_per_image=2,
        options=(
            "-Dfile.encoding=UTF-8",
            *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _REFLECTED),
        ),
    ),
}
_STAGES = (1.0, 0.6, 0.8, 0.6)
"""METEOR's weights of words matched exactly, by stem, by synonym and by paraphrase (Denkowski and Lavie, 2014)."""
_CONTENT = 0.75
"""METEOR's weight of a content word; the rest is that of a function word."""
_URL_SAFE = re.compile(r"[\w./\\:~-]+", re.ASCII)
"""METEOR reads its data through a file: URL made of its own path, without decoding it; it does not find the data where
the path has a space or any other character that a URL escapes."""


def check_java_scorer(metric: str) -> None:
    """Make sure that METEOR or SPICE can be computed here.

    Raises:
        MetricError: Java, pycocoevalcap or a file of the metric is missing, or a jar is damaged.
    """
    folder = metric_folder(metric)
    missing = [name for name in SCORERS[metric].files if not _file_of(metric, name).is_file()]
    if missing:
        raise MetricError(
            f"{metric.upper()} needs {', '.join(missing)} in {folder}, where it is missing: {SCORERS[metric].remedy}"
        )
    for name in SCORERS[metric].files:
        if name.endswith(".jar"):
            _check_jar(_file_of(metric, name))
    find_java()


def _file_of(metric: str, name: str) -> Path:
    """The installed file of a metric, or the one in the folder that SPICE_JARS names."""
    installed, elsewhere = metric_folder(metric) / name, os.environ.get(SPICE_JARS)
    return Path(elsewhere) / Path(name).name if elsewhere and not installed.is_file() else installed


def _check_jar(path: Path) -> None:
    """Compare a jar's checksums: a download that was cut short would fail after the generation only.

    Raises:
        MetricError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as jar:
            damaged = jar.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        damaged = str(error)
    if damaged is not None:
        raise MetricError(f"{path} is damaged or cut short ({damaged}): download it again")


def score_with_java(
    metric: str,
    references: Mapping[str, Sequence[str]],
    results: Mapping[str, str],
    timeout: float | None = None,
) -> tuple[float, dict[str, float], dict[str, tuple[float, ...]]]:
    """METEOR or SPICE of tokenized captions.

    Args:
        metric: `meteor` or `spice`.
        references: tokenized references of every image.
        results: one tokenized caption per image, with the same keys.
        timeout: seconds after which the metric is stopped; the default grows with the number of images.

    Returns:
        Score of the corpus, score of every image, and every image's counts for `statistics.corpus_meteor`;
        SPICE has no counts.

    Raises:
        MetricError: the metric cannot be computed here, failed, or took too long.
    """
    check_java_scorer(metric)
    if timeout is None:
        timeout = SCORERS[metric].seconds + SCORERS[metric].seconds_per_image * len(references)
    with tempfile.TemporaryDirectory(prefix="minigpt4-") as name:
        folder = Path(name)
        _copy_if_unusable(metric, folder)
        captions = {
            "references": {key: [_without_bars(text) for text in texts] for key, texts in references.items()},
            "results": {key: [_without_bars(text)] for key, text in results.items()},
        }
        (folder / "input.json").write_text(json.dumps(captions), encoding="utf-8")
        stderr = _run_child(metric, folder, timeout)
        answer = _read_answer(metric, folder / "output.json", stderr)
    counts = {key: _meteor_counts(line) for key, line in answer["counts"].items()}
    return float(answer["score"]), {key: float(value) for key, value in answer["per_image"].items()}, counts


def _meteor_counts(line: str) -> tuple[float, ...]:
    """What `corpus_meteor` sums, from METEOR's line about a caption.

    It has the numbers of words and of function words (caption and reference, each), then for each of four stages the
    matched content words and function words (again both), chunks, and all matched words of both.
    """
    numbers = [float(word) for word in line.split()]
    sizes, stages, (chunks, *matched) = numbers[:4], numbers[4:20], numbers[20:]
    sums: list[float] = []
    for side in (0, 1):
        content, function = stages[side::4], stages[side + 2 :: 4]
        pairs = zip(_STAGES, content, function, strict=True)
        sums.append(sum(weight * (_CONTENT * c + (1 - _CONTENT) * f) for weight, c, f in pairs))
        words, of_function = sizes[side], sizes[side + 2]
        sums.append(_CONTENT * (words - of_function) + (1 - _CONTENT) * of_function)
    perfect = chunks == 1 and all(sum(stages[side::2]) == sizes[side] for side in (0, 1))
    return (*sums, 0 if perfect else chunks, sum(matched))  # METEOR counts no chunks in a perfect match


def _without_bars(text: str) -> str:
    """METEOR separates captions by three bars."""
    return " ".join(text.replace("|||", " ").split())


def _copy_if_unusable(metric: str, folder: Path) -> None:
    """Copy the scorer into `folder` where the installed one cannot run in its place."""
    installed = metric_folder(metric)
    if metric == "meteor":
        if _URL_SAFE.fullmatch(str(installed)):
            return
        if not _URL_SAFE.fullmatch(str(folder)):
            raise MetricError(
                f"METEOR cannot run from a path with a space or a special character, which both {installed} and the "
                f"temporary folder {folder.parent} have: set TMPDIR to a folder with a plain name"
            )
    # SPICE writes its cache and its temporary files into its own folder, and looks for its jars there.
    elif _writable(installed) and all((installed / name).is_file() for name in SCORERS[metric].files):
        return
    package = folder / "pycocoevalcap"
    shutil.copytree(installed, package / metric)
    for copied, _, _ in os.walk(package):
        # A copy of a read-only folder is read-only too.
        os.chmod(copied, 0o700)
    for name in SCORERS[metric].files:
        if not (package / metric / name).exists():
            (package / metric / name).symlink_to(_file_of(metric, name).resolve())
    # A regular package takes precedence over the installed one, which has no __init__.py.
    (package / "__init__.py").touch()


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def _run_child(metric: str, folder: Path, timeout: float) -> bytes:
    """Run the child; returns what it wrote to stderr."""
    env = find_java().environment(*SCORERS[metric].options)
    env["PYTHONPATH"] = os.pathsep.join([str(folder), *(entry or os.getcwd() for entry in sys.path)])
    # The working folder comes first on the child's path, so it is the folder that may hold the copy.
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt4.evaluation.meteor_spice", metric, "input.json", "output.json"],
        cwd=folder,
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


def _read_answer(metric: str, path: Path, stderr: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MetricError(f"{metric.upper()} died without an answer: {last_lines(stderr)}") from None
    if "error" in answer:
        printed = f"; it printed: {last_lines(stderr)}" if stderr.strip() else ""
        raise MetricError(f"{metric.upper()} failed: {answer['error']} (Java: {find_java().path}){printed}")
    return answer


# From here on: the child process.

_ALIVE: list[Any] = []
"""Scorers, kept from being destroyed when the function that made them returns: METEOR's destructor would hang."""


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
    # An orderly exit would run METEOR's destructor, and join threads that wait for Java.
    os._exit(1 if "error" in answer else 0)


def _score(metric: str, references: dict[str, list[str]], results: dict[str, list[str]]) -> dict[str, Any]:
    scorer = getattr(importlib.import_module(SCORERS[metric].module), SCORERS[metric].name)()
    _ALIVE.append(scorer)
    java_lines: collections.deque[bytes] = collections.deque(maxlen=4)
    process = getattr(scorer, "meteor_p", None)
    reader = None
    if process is not None:
        # Java would block on a full pipe that is never read.
        reader = threading.Thread(target=lambda: java_lines.extend(process.stderr), daemon=True)
        reader.start()
    lines: list[str] = []
    if metric == "meteor":
        ask = scorer._stat

        def ask_and_keep(caption: str, texts: list[str]) -> str:
            lines.append(ask(caption, texts))
            return lines[-1]

        scorer._stat = ask_and_keep
    try:
        score, scores = scorer.compute_score(references, results)
    except BaseException as error:
        if reader is not None:
            reader.join(timeout=2)
        printed = b"".join(java_lines.copy())
        java = f" (Java: {last_lines(printed, 4)})" if printed else ""
        return {"error": f"{type(error).__name__}: {error}{java}"}
    if metric == "spice":
        # SPICE answers in the order of the sorted ids, with a score for every kind of word.
        per_image = {key: item["All"]["f"] for key, item in zip(sorted(references), scores, strict=True)}
    else:
        per_image = dict(zip(references, scores, strict=True))
    counts = dict(zip(references, lines, strict=True)) if lines else {}
    return {
        "score": float(score),
        "per_image": {key: float(value) for key, value in per_image.items()},
        "counts": counts,
    }


if __name__ == "__main__":
    main()
