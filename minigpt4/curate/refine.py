"""Descriptions -> corrections, several at a time; a sample that cannot be corrected stays pending."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from minigpt4.common.errors import DataError
from minigpt4.common.logging import Progress
from minigpt4.common.registry import refiners
from minigpt4.common.schema import ModelConfig, RefineConfig
from minigpt4.curate.ledger import Event, Ledger, SampleState
from minigpt4.curate.refiners.base import RefineError, Refiner

logger = logging.getLogger(__name__)


def refine(settings: RefineConfig, ledger: Ledger, *, model: ModelConfig, seed: int, device: str) -> Counter[str]:
    """Correct every description that has no correction yet.

    A description that cannot be corrected now stays pending with the reason, and the next run tries it again.

    Args:
        settings: refiner and its settings.
        ledger: descriptions, and where each correction is appended as soon as it is there.
        model: alignment model, whose language model a refiner may use.
        seed: part of the names of all random generators.
        device: auto, cpu or cuda.

    Returns:
        Tokens that this run took, by `prompt_tokens` and `completion_tokens`.

    Raises:
        ConfigError: The refiner is unknown, or one of its settings cannot be used.
        DataError: The refiner cannot correct anything (a wrong key, an unknown model); the reason is in the ledger.
    """
    states = [state for state in ledger.states().values() if state.next_step == "refine"]
    usage: Counter[str] = Counter()
    if not states:
        logger.info("no description waits for a correction")
        return usage
    build = refiners.get(settings.refiner)
    refiner: Refiner = build(settings, model=model, seed=seed, device=device)
    waiting = iter(states)
    running: set[Future[tuple[Event, bool]]] = set()
    failed: list[Event] = []
    fatal: Event | None = None
    with (
        Progress("corrections", len(states), "descriptions") as progress,
        ThreadPoolExecutor(refiner.concurrency) as pool,
    ):
        try:
            while True:
                # No more than can be worked on: a fatal failure or Ctrl-C then ends the run soon.
                free = refiner.concurrency - len(running) if fatal is None else 0
                running |= {pool.submit(_attempt, refiner, state) for state in islice(waiting, free)}
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    event, is_fatal = future.result()
                    ledger.append([event])
                    running.remove(future)
                    usage.update(event.get("usage") or {})
                    progress.advance()
                    if "error" in event:
                        failed.append(event)
                    if is_fatal:
                        fatal = event
        except KeyboardInterrupt:
            # The requests under way may have been paid for.
            ledger.append(future.result()[0] for future in wait(running).done)
            raise
    if fatal is not None:
        raise DataError(f"sample {fatal['sample']}: {fatal['error']}; fix it, and run refine again")
    if failed:
        logger.warning(
            "%d descriptions stay pending; sample %s: %s", len(failed), failed[0]["sample"], failed[0]["error"]
        )
    return usage


def bill(usage: Mapping[str, int], price_in: float | None, price_out: float | None) -> dict[str, float]:
    """Tokens, and `cost` where a price is given.

    Args:
        usage: tokens by `prompt_tokens` and `completion_tokens`.
        price_in: price of a million prompt tokens.
        price_out: price of a million generated tokens.
    """
    tokens_in, tokens_out = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    costs: dict[str, float] = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    if price_in is not None or price_out is not None:
        costs["cost"] = round((tokens_in * (price_in or 0) + tokens_out * (price_out or 0)) / 1e6, 6)
    return costs


def _attempt(refiner: Refiner, state: SampleState) -> tuple[Event, bool]:
    """The event of one correction, and whether no other description can be corrected either."""
    event: Event = {"sample": state.sample, "step": "refine"}
    if not any(text.strip() for text in state.texts):
        return event | {"text": ""}, False  # the filter rejects it as too short
    try:
        correction = refiner.refine(state.sample, state.texts)
    except RefineError as error:
        return event | {"error": str(error), "usage": error.usage}, error.fatal
    event |= {"text": correction.text, "usage": dict(correction.usage)}
    return event | ({} if correction.agreement is None else {"agreement": round(correction.agreement, 4)}), False
