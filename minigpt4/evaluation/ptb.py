"""Penn Treebank tokenization of captions, with the Stanford tokenizer that pycocoevalcap ships.

The tokens are those of pycocoevalcap's `PTBTokenizer` (the COCO evaluation server's), which the
scores in papers rest on. What differs is what happens around them: there, a vertical tab or a U+2028 inside
one caption moves every later caption to another image, and a Java that fails gives empty tokens.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.errors import MetricError
from minigpt4.evaluation.java import find_java

NAME = "PTB (Stanford CoreNLP 3.4.1, lower case, punctuation removed; as in pycocoevalcap)"
"""How results name this tokenizer."""

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that are removed: pycocoevalcap's list."""

_JAR = "stanford-corenlp-3.4.1.jar"
_BASE_TIMEOUT = 120.0
_SECONDS_PER_CAPTION = 0.01


def metric_folder(name: str) -> Path:
    """The folder of one part (`tokenizer`, `meteor`, `spice`) of the installed pycocoevalcap.

    Raises:
        MetricError: pycocoevalcap is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).is_dir():
            return Path(folder) / name
    raise MetricError(
        "the caption metrics need the package pycocoevalcap: `pip install pycocoevalcap`, or "
        "`pip install 'minigpt4[eval]'`"
    )


def check_tokenizer() -> None:
    """Make sure that captions can be tokenized here.

    Raises:
        MetricError: no Java, no pycocoevalcap, or its jar is missing.
    """
    _jar()
    find_java()


def one_line(caption: str) -> str:
    """The caption with every run of white space, of whatever kind, as one space.

    The tokenizer reads one caption a line, and to it CR, VT, FF, U+0085, U+2028 and U+2029 also end a line.
    """
    return " ".join(caption.split())


def tokenize(captions: Sequence[str], timeout: float | None = None) -> list[str]:
    """Tokens of every caption, joined by single spaces.

    Args:
        captions: any text; white space of every kind is allowed.
        timeout: seconds after which Java is given up; by default two minutes and 10 ms a caption.

    Returns:
        One string a caption, in the same order; empty where a caption has no word.

    Raises:
        MetricError: Java is missing, fails, hangs, or its output does not fit the captions.
    """
    if not captions:
        return []
    lines = [one_line(caption) for caption in captions]
    if timeout is None:
        timeout = _BASE_TIMEOUT + _SECONDS_PER_CAPTION * len(lines)
    output = _run_tokenizer("".join(f"{line}\n" for line in lines), timeout)
    tokenized = output.split("\n")
    if tokenized.pop() != "" or len(tokenized) != len(lines):
        raise MetricError(
            f"the PTB tokenizer returned {len(tokenized)} lines for {len(lines)} captions: scores would compare "
            f"captions of different images (Java: {find_java().path})"
        )
    return [_without_punctuation(line) for line in tokenized]


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.split() if token not in PUNCTUATION)


def _jar() -> Path:
    jar = metric_folder("tokenizer") / _JAR
    if not jar.is_file():
        raise MetricError(
            f"the tokenizer's {_JAR} is missing from {jar.parent}: reinstall it with "
            "`pip install --force-reinstall pycocoevalcap`"
        )
    return jar


def _run_tokenizer(text: str, timeout: float) -> str:
    """Java's answer to `text`, which goes in by stdin: the tokenizer splits a file's name at its spaces."""
    java = find_java()
    command = [str(java.path), "-Dfile.encoding=UTF-8", "-cp", str(_jar())]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    try:
        done = subprocess.run(
            command,
            # A lone surrogate, which JSON may carry, cannot be encoded.
            input=text.encode("utf-8", errors="replace"),
            capture_output=True,
            env=java.environment(),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MetricError(f"the PTB tokenizer gave no answer within {timeout:.0f} s (Java: {java.path})") from None
    except OSError as error:
        raise MetricError(f"the PTB tokenizer could not start {java.path}: {error}") from None
    if done.returncode != 0:
        raise MetricError(
            f"the PTB tokenizer failed: {java.path} ended with exit status {done.returncode}: {last_lines(done.stderr)}"
        )
    return done.stdout.decode("utf-8", errors="replace")


def last_lines(stderr: bytes, count: int = 3) -> str:
    """The last lines a child wrote, without Java's stack traces, as one line fit for an error message."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    told = [line for line in lines if line and not line.startswith(("at ", "...", "NOTE: Picked up"))]
    return " | ".join(told[-count:]) or "it said nothing"
