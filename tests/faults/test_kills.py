"""A few kills of the quick commands; `make torture` kills all of them, hundreds of times."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.commands import COMMANDS, Command
from tests.faults.disturb import Kind
from tests.faults.kills import Fault, Workshop
from tests.faults.outcomes import Outcome

QUICK = {"index of shards": 3, "prepare": 2}
"""Commands, and kills of each."""
CARELESS = """
import pathlib
out = pathlib.Path("out", "counted.txt")
if not out.exists():
    for number in range(3):
        with out.open("a") as file:
            file.write(f"{number}\\n")
    out.rename(out.with_name("done.txt"))
    out.write_text("ready")
"""
"""Takes a file that was begun for a file that is finished, and does not catch a full disk."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.name in QUICK], ids=lambda command: command.name)
def test_a_killed_command_ends_as_if_it_had_not_been(workshop: Workshop, command: Command) -> None:
    draw = Random(0)
    calm = workshop.undisturbed(command)
    for fault in draw.sample(calm.every_write(Kind.kill), QUICK[command.name]):
        assert workshop.outcome(command, fault, calm, draw) == (Outcome.survived, "")


def test_a_full_disk_is_one_line(workshop: Workshop) -> None:
    (command,) = [c for c in COMMANDS if c.name == "prepare"]
    calm = workshop.undisturbed(command)
    for fault in (calm.every_write(Kind.full)[-3], Fault(Kind.read_only, 0, write=1)):
        assert workshop.outcome(command, fault, calm, Random(0)) == (Outcome.survived, "")


def test_what_is_lost_or_wrong_is_noticed(workshop: Workshop, tmp_path: Path) -> None:
    """The check itself, by a command that survives nothing."""
    (tmp_path / "careless.py").write_text(CARELESS)
    command = Command("careless", ((str(tmp_path / "careless.py"),),))
    calm = workshop.undisturbed(command)
    assert [write.what for write in calm.writes[0][0]] == [
        *["open out/counted.txt"] * 3,
        "os.rename out/counted.txt",
        "open out/counted.txt",
    ]
    found = [workshop.outcome(command, fault, calm, Random(0)) for fault in calm.every_write(Kind.kill)]
    assert [outcome for outcome, _ in filter(None, found)] == [Outcome.wrong] * 4 + [Outcome.survived]
    full = workshop.outcome(command, Fault(Kind.full, 0, write=2), calm, Random(0))
    assert full is not None and full[0] is Outcome.wrong and "a traceback" in full[1]
    assert workshop.outcome(command, Fault(Kind.kill, 0, seconds=30.0), calm, Random(0)) is None
