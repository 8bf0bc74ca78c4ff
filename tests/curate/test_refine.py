"""Corrections of all samples: nothing that was answered is lost, and the bill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import wait
from threading import Event as Signal
from typing import Any

import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.registry import refiners
from minigpt4.common.schema import RefineConfig
from minigpt4.curate.ledger import Ledger, Tally
from minigpt4.curate.refine import bill
from minigpt4.curate.refiners import Correction, RefineError, Refiner
from tests.curate.conftest import TEXT, described, fill, refine_all


def test_a_fatal_failure_loses_no_correction_under_way(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Signal()

    class Failing(Refiner):
        concurrency = 2

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def refine(self, sample: str, texts: Sequence[str]) -> Correction:
            if sample == "0":
                raise RefineError("wrong key", fatal=True)
            assert failed.wait(20)
            return Correction(TEXT, usage={"prompt_tokens": 7})

    refiners.get("local")  # registers the shipped ones
    monkeypatch.setitem(refiners._entries, "failing", Failing)
    fill(ledger, 9, lambda number: described(number, TEXT))
    append = ledger.append

    def append_and_tell(events: Sequence[dict[str, Any]]) -> None:
        append(events)
        failed.set()

    monkeypatch.setattr(ledger, "append", append_and_tell)
    with pytest.raises(DataError, match="sample 0: wrong key; fix it, and run refine again"):
        refine_all(RefineConfig(refiner="failing"), ledger)
    tally = Tally.of(ledger.states())
    assert tally.pending == Counter({"refine": 8, "filter": 1})
    assert (tally.failed, ledger.states()["1"].text) == (1, TEXT)


def test_ctrl_c_loses_no_correction_under_way(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([True])

    def interrupted(*given: Any, **words: Any) -> Any:
        if next(waits, False):
            raise KeyboardInterrupt
        return wait(*given, **words)

    monkeypatch.setattr("minigpt4.curate.refine.wait", interrupted)
    fill(ledger, 3, lambda number: described(number, TEXT))
    with pytest.raises(KeyboardInterrupt):
        refine_all(RefineConfig(refiner="local"), ledger)
    assert Tally.of(ledger.states()).pending == Counter({"refine": 2, "filter": 1})


def test_an_empty_description_is_left_to_the_filter(ledger: Ledger) -> None:
    fill(ledger, 1, lambda number: described(number, " ", ""))
    assert refine_all(RefineConfig(refiner="local"), ledger) == Counter()
    assert (ledger.states()["0"].text, ledger.states()["0"].next_step) == ("", "filter")


def test_an_unknown_refiner_is_named(ledger: Ledger) -> None:
    fill(ledger, 1, lambda number: described(number, TEXT))
    with pytest.raises(ConfigError, match="unknown refiner 'endpont'; did you mean 'endpoint'"):
        refine_all(RefineConfig(refiner="endpont"), ledger)


def test_the_bill() -> None:
    usage = Counter(prompt_tokens=2_000_000, completion_tokens=500_000)
    assert bill(usage, 0.5, 2.0) == {"prompt_tokens": 2_000_000, "completion_tokens": 500_000, "cost": 2.0}
    assert "cost" not in bill(usage, None, None)
