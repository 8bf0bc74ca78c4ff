"""The rules for corrected descriptions."""

from __future__ import annotations

import pytest

from minigpt4.common.schema import FilterConfig
from minigpt4.curate.filter import apply_rules, broken_rule
from minigpt4.curate.ledger import Ledger, Tally
from tests.curate.conftest import TEXT, described, fill, refined

GOOD = "The image shows a brown dog on the grass. It looks at a red ball that lies in front of it."
BROKEN = {
    "too_short": "There is a dog.",
    "too_long": " ".join([GOOD] * 20),
    "repetition": f"{GOOD} {GOOD}",
    "meaningless": GOOD.replace("red", "red ~~^^||<<>>"),
    "fragment": GOOD + " and it is the",
    "not_english": "Das Bild zeigt einen braunen Hund auf der Wiese. Er sieht einen roten Ball vor sich liegen.",
}


def test_a_good_text_passes_every_rule() -> None:
    assert broken_rule(GOOD, None, FilterConfig(min_agreement=0.9)) is None


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_names_itself_and_its_reason(rule: str) -> None:
    found = broken_rule(BROKEN[rule], None, FilterConfig())
    assert found is not None and found[0] == rule
    assert any(character.isdigit() for character in found[1])


@pytest.mark.parametrize(
    ("rule", "off"),
    [
        ("too_short", {"min_words": 0}),
        ("too_long", {"max_words": 0, "max_repetition": None}),
        ("repetition", {"max_repetition": None}),
        ("meaningless", {"max_strange": None}),
        ("fragment", {"max_fragments": None}),
        ("not_english", {"min_english": None}),
    ],
)
def test_each_rule_can_be_left_out(rule: str, off: dict[str, None]) -> None:
    assert broken_rule(BROKEN[rule], None, FilterConfig(**off)) is None


def test_agreement_counts_where_there_is_one() -> None:
    limits = FilterConfig(min_agreement=0.6)
    assert broken_rule(GOOD, 0.6, limits) is None
    assert broken_rule(GOOD, 0.59, limits) == (
        "agreement",
        "supported by 0.59 of the image's descriptions, should be at least 0.60",
    )


def test_other_alphabets_are_not_english() -> None:
    found = broken_rule("这张图片显示了一只狗在草地上。" * 3, None, FilterConfig(min_words=0, max_repetition=None))
    assert found is not None and found[0] in ("not_english", "fragment", "meaningless")


def judged(ledger: Ledger, **limits: object) -> dict[str, int]:
    return dict(apply_rules(FilterConfig(**limits), ledger))


def test_a_rerun_changes_nothing_and_other_thresholds_judge_again(ledger: Ledger) -> None:
    fill(ledger, 3, lambda number: described(number, TEXT), lambda number: refined(number, BROKEN["too_short"]))
    ledger.append([refined(1, GOOD)])
    assert judged(ledger) == {"too_short": 2, "kept": 1}
    assert judged(ledger) == {}
    assert str(Tally.of(ledger.states())).startswith("3 drawn = 0 accepted + 2 rejected + 1 pending")
    ledger.append([{"sample": "1", "step": "review", "decision": "accept", "by": "person"}])
    assert judged(ledger, min_words=2) == {"kept": 2}  # what a reviewer decided on is not judged again
    tally = Tally.of(ledger.states())
    assert (tally.accepted, tally.rejected.total(), tally.pending["review"]) == (1, 0, 2)
