"""Descriptions -> corrections, one at a time or several at once; nothing is lost where it fails."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm

from minigpt4.common.errors import DataError
from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config
from minigpt4.curate.ledger import Case, Event, Ledger, cases_of
from minigpt4.curate.refiners import RefineError, Refiner

logger = logging.getLogger(__name__)


def refine(cfg: Config, ledger: Ledger) -> Counter[str]:
    """Correct every description that has no correction yet.

    One that cannot be corrected now stays pending with the reason, and the next run tries it again.

    Returns:
        Tokens that this run took.

    Raises:
        ConfigError: The refiner is unknown, or a setting of its cannot be used.
        DataError: The refiner cannot correct anything (a wrong key, an unknown model); the reason is in the ledger.
    """
    cases = [case for case in cases_of(ledger.events()).values() if case.texts and case.text is None]
    usage: Counter[str] = Counter()
    if not cases:
        logger.info("no description waits for its correction")
        return usage
    refiner: Refiner = refiners.get(cfg.curation.refine.refiner)(cfg)
    failed: list[Event] = []
    progress = tqdm(total=len(cases), desc="corrections", disable=None)
    for event, fatal in _attempts(refiner, cases):
        ledger.append([event])
        usage.update(event.get("usage") or {})
        progress.update()
        if "error" in event:
            failed.append(event)
        if fatal:
            raise DataError(f"sample {event['sample']}: {event['error']}; mend it, and run refine again")
    progress.close()
    if failed:
        logger.warning(
            "%d descriptions stay pending; sample %s: %s", len(failed), failed[0]["sample"], failed[0]["error"]
        )
    return usage


def _attempts(refiner: Refiner, cases: list[Case]) -> Iterator[tuple[Event, bool]]:
    """(event, whether nothing further can be done) of each sample, as they are finished.

    Only as many are handed out as can be worked on, so that a fatal failure or Ctrl-C ends it soon.
    """
    todo = iter(cases)
    with ThreadPoolExecutor(refiner.concurrency) as pool:
        running: set[Future[tuple[Event, bool]]] = set()
        try:
            while True:
                while len(running) < refiner.concurrency and (case := next(todo, None)) is not None:
                    running.add(pool.submit(_attempt, refiner, case))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                # All that is finished goes to the ledger before the caller can stop at a fatal one.
                yield from sorted((future.result() for future in done), key=lambda result: result[1])
        except GeneratorExit:
            for future in running:
                future.cancel()
            raise


def _attempt(refiner: Refiner, case: Case) -> tuple[Event, bool]:
    event: Event = {"sample": case.sample, "step": "refine"}
    if not any(text.strip() for text in case.texts):
        return event | {"text": ""}, False  # the rules will say that it is too short
    try:
        correction = refiner.refine(case.sample, case.texts)
    except RefineError as error:
        return event | {"error": str(error), "usage": error.usage}, error.fatal
    event |= {"text": correction.text, "usage": dict(correction.usage)}
    return event | ({} if correction.agreement is None else {"agreement": round(correction.agreement, 4)}), False
