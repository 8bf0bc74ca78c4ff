"""Commands that are killed, or cannot write, and are given again: their results are those of an undisturbed run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults.commands import COMMANDS, Command, differences, write_data
from tests.faults.disturb import Disturbance, Kind, Write
from tests.faults.outcomes import Outcome, Tally
from tests.launch import Finished, launch

MAX_KILLS = 3
"""Kills of one command before it is left alone."""
SHOWN = 1500
"""Last characters of a failed command's output that are shown."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a command.

    Attributes:
        kind: what happens.
        line: number of the command line that it happens in.
        rank: rank of the process that it happens to.
        write: number of the write that it happens at, from 1; None: at none.
        seconds: time after which the process is killed; None: it is killed at a write.
    """

    kind: Kind
    line: int
    rank: int = 0
    write: int | None = None
    seconds: float | None = None

    def on(self, folder: Path) -> Disturbance:
        """It, in a folder."""
        journal = folder.with_name(f"{folder.name}.writes")
        return Disturbance(folder, journal, self.kind, self.rank, self.write, self.seconds)


@dataclass(frozen=True)
class Undisturbed:
    """A command that was left alone.

    Attributes:
        results: folder of its results.
        writes: what each rank wrote in each of its lines, in order.
    """

    results: Path
    writes: tuple[tuple[list[Write], ...], ...]

    def every_write(self, kind: Kind) -> list[Fault]:
        """A fault at each write of each process."""
        return [
            Fault(kind, line, rank, number)
            for line, ranks in enumerate(self.writes)
            for rank, writes in enumerate(ranks)
            for number in range(1, len(writes) + 1)
        ]

    def random_moment(self, draw: Random) -> Fault:
        """A kill at a random moment of a random process."""
        ends = {
            (line, rank): writes[-1].seconds
            for line, ranks in enumerate(self.writes)
            for rank, writes in enumerate(ranks)
            if writes
        }
        line, rank = draw.choices(list(ends), list(ends.values()))[0]
        return Fault(Kind.kill, line, rank, seconds=draw.uniform(0.01, ends[line, rank]))


class Workshop:
    """A folder in which commands are disturbed.

    Args:
        folder: empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        write_data(folder / "data")

    def undisturbed(self, command: Command) -> Undisturbed:
        """Run a command to its end."""
        place = self._new_place()
        writes = []
        for line in range(len(command.lines)):
            watch = Fault(Kind.nothing, line).on(place)
            done = _run(command, line, place, watch)
            if done.returncode != 0:
                raise RuntimeError(f"{command.name} failed without being disturbed: {done.stderr[-SHOWN:]}")
            writes.append(tuple(watch.take_writes(rank) for rank in range(command.ranks)))
        return Undisturbed(place / "out", tuple(writes))

    def outcome(self, command: Command, fault: Fault, calm: Undisturbed, draw: Random) -> tuple[Outcome, str] | None:
        """What becomes of a command that this happens to, when it is given again afterwards.

        Some of those that are killed are killed again at their first writes.

        Args:
            command: the command.
            fault: what happens.
            calm: the command when left alone.
            draw: decides whether it is killed again, and where.

        Returns:
            The outcome, and what is wrong; None: the command had ended before.
        """
        place = self._new_place()
        try:
            for line in range(fault.line):
                _run(command, line, place)
            done = _run(command, fault.line, place, fault.on(place))
            story = f"{fault} after {self._last_write(fault, place)}"
            if fault.kind is Kind.kill:
                if done.returncode == 0:
                    return None
                for _ in range(draw.choice((0, 0, 0, MAX_KILLS - 1))):
                    again = Fault(Kind.kill, fault.line, fault.rank, draw.randint(1, 12))
                    _run(command, fault.line, place, again.on(place))
                    story += f", killed again at {self._last_write(again, place)}"
            elif problem := _untidy_end(done):
                return Outcome.wrong, f"{story}: {problem}"
            for line in range(len(command.lines)):
                done = _run(command, line, place)
                if done.returncode != 0:
                    return Outcome.lost, f"{story}: given again, line {line} fails: {_tail(done)}"
            if wrong := differences(place / "out", calm.results):
                return Outcome.wrong, f"{story}: {'; '.join(wrong)}"
            return Outcome.survived, ""
        finally:
            shutil.rmtree(place)

    def _last_write(self, fault: Fault, place: Path) -> str:
        writes = fault.on(place).take_writes(fault.rank)
        return writes[-1].what if writes else "no write"

    def _new_place(self) -> Path:
        place = self.folder / "runs" / str(next(self._numbers))
        (place / "out").mkdir(parents=True)
        return place


def kill_commands(
    folder: Path, kills: int, seed: int, processes: int = 1, commands: Sequence[Command] = COMMANDS
) -> Iterator[Tally]:
    """Kill the commands, half of the times at writes and half at random moments; fill their disk, and forbid writing.

    Args:
        folder: where they work; it is made.
        kills: number of kills. All commands get the same share, and a sixth as often a full disk.
        seed: names the faults.
        processes: commands that run at a time.
        commands: the commands.
    """
    workshop = Workshop(folder)
    with ThreadPoolExecutor(processes) as pool:
        for number, command in enumerate(commands):
            draw = Random(f"{seed}-{command.name}")
            calm = workshop.undisturbed(command)
            share = kills * (number + 1) // len(commands) - kills * number // len(commands)
            faults = {
                "killed at a write": _some(calm.every_write(Kind.kill), share - share // 2, draw),
                "killed at a moment": [calm.random_moment(draw) for _ in range(share // 2)],
                "disk full": _some(calm.every_write(Kind.full), -(-share // 6), draw),
                "read-only folder": [Fault(Kind.read_only, line, write=1) for line in range(len(command.lines))],
            }
            for name, listed in faults.items():
                tally = Tally(f"{name}: {command.name}")
                jobs = [
                    pool.submit(workshop.outcome, command, fault, calm, Random(f"{seed}-{command.name}-{name}-{place}"))
                    for place, fault in enumerate(listed)
                ]
                for job in jobs:
                    found = job.result()
                    if found is not None:
                        tally.add(*found)
                yield tally


def _some(faults: list[Fault], count: int, draw: Random) -> list[Fault]:
    """`count` faults; each comes once before any comes again."""
    found: list[Fault] = []
    while faults and len(found) < count:
        found += draw.sample(faults, min(count - len(found), len(faults)))
    return found


def _run(command: Command, line: int, place: Path, disturbance: Disturbance | None = None) -> Finished:
    return launch(*command.lines[line], ranks=command.ranks, cwd=place, before=disturbance)


def _untidy_end(done: Finished) -> str | None:
    """What is wrong with the end of a command that could not write; None: nothing."""
    if "Traceback" in done.stderr:
        return f"a traceback: {_tail(done)}"
    if done.returncode != 0 and "error: " not in done.stderr:
        return f"no message: {_tail(done)}"
    return None


def _tail(done: Finished) -> str:
    return (done.stdout + done.stderr)[-SHOWN:]
