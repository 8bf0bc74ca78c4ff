"""Faults by the hundred, and what became of them: `python -m tests.faults --kills 300 --files 2000` (`make torture`).

A table of faults is printed, and everything that was lost or wrong; exit status 1 where there is anything. The same
seed injects the same faults.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.outcomes import Tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject the faults; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=330, help="kills, half of them at writes (default: %(default)s)")
    parser.add_argument("--files", type=int, default=2000, help="damaged files (default: %(default)s)")
    parser.add_argument(
        "--configurations", type=int, default=1000, help="configurations drawn from the schema (default: %(default)s)"
    )
    parser.add_argument(
        "--chat", type=int, default=300, help="seconds of 50 clients on the page (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="names the faults (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="commands killed at a time (default: %(default)s)")
    given = parser.parse_args(arguments)
    from rich.console import Console

    from tests.faults.outcomes import Outcome, table

    logging.disable(logging.WARNING)  # of files that are damaged on purpose
    started = time.monotonic()
    tallies = []
    for tally in _tallies(given):
        tallies.append(tally)
        sys.stderr.write(f"{tally}\n")
    console = Console(width=120, highlight=False)
    problems = [problem for tally in tallies for problem in tally.problems]
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(table(tallies))
    console.print(f"seed {given.seed}, {time.monotonic() - started:,.0f} s")
    return int(any(tally.outcomes.keys() - {Outcome.survived} for tally in tallies))


def _tallies(given: argparse.Namespace) -> Iterator[Tally]:
    with tempfile.TemporaryDirectory() as folder:
        if given.kills:
            from tests.faults.kills import kill_commands

            yield from kill_commands(Path(folder, "kills"), given.kills, given.seed, given.processes)
        if given.files:
            from tests.faults.files import damage_files

            yield from damage_files(Path(folder, "files"), given.files, given.seed)
        if given.configurations:
            from tests.faults.configurations import try_configurations

            yield from try_configurations(Path(folder, "configurations"), given.configurations, given.seed)
        if given.chat:
            from tests.faults.soak import soak

            yield soak(Path(folder, "chat"), given.chat, given.seed)


if __name__ == "__main__":
    sys.exit(main())
