"""Corrections -> kept, or rejected by a named rule with a reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict

from minigpt4.common.schema import FilterConfig
from minigpt4.curate.ledger import Event, Ledger
from minigpt4.evaluation.fluency import common_word_ratio, fragments, odd_character_ratio, repetition, words


def broken_rule(text: str, agreement: float | None, limits: FilterConfig) -> tuple[str, str] | None:
    """The name of the first rule that a text breaks, and the reason; None: it breaks none.

    Args:
        text: corrected description.
        agreement: support by the image's other descriptions, 0 to 1; None where it was not measured.
        limits: thresholds; null or 0 turns a rule off.
    """
    count = len(words(text))
    if count < limits.min_words:
        return "too_short", f"{count} words, should be at least {limits.min_words}"
    if limits.max_words and count > limits.max_words:
        return "too_long", f"{count} words, should be at most {limits.max_words}"
    if agreement is not None and limits.min_agreement is not None and agreement < limits.min_agreement:
        return (
            "agreement",
            f"supported by {agreement:.2f} of the image's descriptions, should be at least {limits.min_agreement:.2f}",
        )
    shares = (
        ("meaningless", odd_character_ratio(text), limits.max_strange, "of the characters are odd or repeated"),
        ("repetition", repetition(text), limits.max_repetition, "of the word trigrams occurred before"),
        ("fragment", fragments(text), limits.max_fragments, "of the sentences have no beginning or no end"),
    )
    for rule, share, limit, what in shares:
        if limit is not None and share > limit:
            return rule, f"{share:.2f} {what}, should be at most {limit:.2f}"
    common = common_word_ratio(text)
    if limits.min_english and common < limits.min_english:
        return (
            "not_english",
            f"{common:.2f} of the words are common in English, should be at least {limits.min_english:.2f}",
        )
    return None


def apply_rules(limits: FilterConfig, ledger: Ledger) -> Counter[str]:
    """Judge every correction that no reviewer has decided on, except those that the same rules judged before.

    Args:
        limits: thresholds of the rules.
        ledger: corrections, and where the verdicts are appended.

    Returns:
        Rule -> corrections that it rejected in this run; `kept` -> corrections that broke none.
    """
    digest = hashlib.sha256(json.dumps(asdict(limits), sort_keys=True).encode()).hexdigest()[:12]
    events: list[Event] = []
    for state in ledger.states().values():
        if state.text is None or state.decision is not None or state.rules == digest:
            continue
        rule, reason = broken_rule(state.text, state.agreement, limits) or (None, None)
        events.append({"sample": state.sample, "step": "filter", "rule": rule, "reason": reason, "rules": digest})
    ledger.append(events)
    return Counter(event["rule"] or "kept" for event in events)
