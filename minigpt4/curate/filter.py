"""Corrections -> kept, or rejected by a rule with its name and the reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict

from minigpt4.common.schema import Config, FilterConfig
from minigpt4.curate.ledger import Case, Event, Ledger, cases_of
from minigpt4.evaluation.fluency import english, fragments, repetition, strange, words

Rejection = tuple[str, str]
"""Name of the rule, and the reason."""


def broken_rule(text: str, agreement: float | None, limits: FilterConfig) -> Rejection | None:
    """The first rule that a text breaks; None: it keeps them all.

    Args:
        text: A corrected description.
        agreement: Support by the picture's other descriptions; None where nobody compared them.
        limits: Thresholds; null or 0 leaves a rule out.
    """
    count = len(words(text))
    if count < limits.min_words:
        return "too_short", f"{count} words, at least {limits.min_words} are expected"
    if limits.max_words and count > limits.max_words:
        return "too_long", f"{count} words, at most {limits.max_words} are expected"
    if agreement is not None and limits.min_agreement is not None and agreement < limits.min_agreement:
        least = f"at least {limits.min_agreement:.2f} is expected"
        return "agreement", f"supported by {agreement:.2f} of the picture's descriptions, {least}"
    shares = (
        ("meaningless", strange(text), limits.max_strange, "of the characters are strange or repeated"),
        ("repetition", repetition(text), limits.max_repetition, "of the word trigrams occurred before"),
        ("fragment", fragments(text), limits.max_fragments, "of the sentences have no beginning or no end"),
    )
    for rule, share, limit, what in shares:
        if limit is not None and share > limit:
            return rule, f"{share:.2f} {what}, at most {limit:.2f} is allowed"
    if limits.min_english and english(text) < limits.min_english:
        return (
            "not_english",
            f"{english(text):.2f} of the words are common English ones, at least {limits.min_english:.2f}",
        )
    return None


def apply_rules(cfg: Config, ledger: Ledger) -> Counter[str]:
    """Judge every correction that no person has decided on; those judged by the same rules before are left alone.

    Returns:
        Rule -> number of rejections this time; `kept` -> number of the others.
    """
    limits = cfg.curation.filter
    digest = hashlib.sha256(json.dumps(asdict(limits), sort_keys=True).encode()).hexdigest()[:12]
    events: list[Event] = []
    for case in cases_of(ledger.events()).values():
        if case.text is None or case.decision is not None or (case.verdict and case.verdict["rules"] == digest):
            continue
        events.append(_verdict(case, limits, digest))
    ledger.append(events)
    return Counter(event["rule"] or "kept" for event in events)


def _verdict(case: Case, limits: FilterConfig, digest: str) -> Event:
    assert case.text is not None
    rule, reason = broken_rule(case.text, case.agreement, limits) or (None, None)
    return {"sample": case.sample, "step": "filter", "rule": rule, "reason": reason, "rules": digest}
