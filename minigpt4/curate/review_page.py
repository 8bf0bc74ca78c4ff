"""What the review page shows; every text in it is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from string import Template
from urllib.parse import quote, urlencode

from minigpt4.common.cli import command
from minigpt4.common.files import asset
from minigpt4.curate.ledger import SampleState
from minigpt4.curate.review import ACCEPTED, EVERYTHING, REJECTED, WAITING, Review, verdict


def render_page(review: Review, state: SampleState | None, show: str = WAITING, before: str = "") -> str:
    """The page of a sample, or the last page where there is none.

    Args:
        review: samples and decisions.
        state: the sample.
        show: verdict of the samples that are gone through (`Review.shown`).
        before: id of the sample looked at before; empty: none.
    """
    verdicts = review.verdicts()
    decided = verdicts[ACCEPTED] + verdicts[REJECTED]
    choices = {**verdicts, EVERYTHING: verdicts.total()}
    choices.setdefault(show, 0)
    if state is None:
        main, strip = _last(review, show), ""
    else:
        main = _sample(review, state, show)
        strip = "".join(_small(review, one, show, one is state) for one in review.neighbours(state, show))
    values = {
        "title": "Review" if state is None else f"Review of sample {state.sample}",
        "tally": str(review.tally()),
        "decided": str(decided),
        "total": str(decided + verdicts[WAITING]),
    }
    options = "".join(_option(name, count, name == show) for name, count in choices.items())
    return _fill("page.html", values, choices=options, back=_back(review, show, before), main=main, strip=strip)


def page_address(show: str, before: str = "", sample: str = "") -> str:
    """Address of a sample's page, or of the next one's.

    Args:
        show: verdict of the samples that are gone through.
        before: id of the sample looked at before; empty: none.
        sample: id of the sample; empty: the next one behind `before`.
    """
    query = {"show": show} if show != WAITING else {}
    query |= {"before": before} if before else {}
    path = f"/sample/{quote(sample, safe='')}" if sample else "/"
    return f"{path}?{urlencode(query)}" if query else path


def diff(before: str, after: str) -> str:
    """Markup that shows word by word how a text was changed, by <del> and <ins>."""
    old, new = before.split(), after.split()
    parts = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        removed, added = (html.escape(" ".join(words)) for words in (old[i1:i2], new[j1:j2]))
        if kind == "equal":
            parts.append(added)
        else:
            parts += [f"<{tag}>{text}</{tag}>" for tag, text in (("del", removed), ("ins", added)) if text]
    return " ".join(parts)


def _sample(review: Review, state: SampleState, show: str) -> str:
    said, text = state.texts[0] if state.texts else "", state.text or ""
    changed = "" if said.split() == text.split() else diff(said, text)
    judgement = verdict(state)
    return _fill(
        "sample.html",
        {
            "token": review.token,
            "sample": state.sample,
            "show": show,
            "image": _image_address(review, state),
            "name": str(state.drawn["name"]),
            "text": text,
            "verdict": f"{judgement}: {state.reason}" if state.broken_rule and not state.decision else judgement,
            "kind": _kind(state),
            "edited": "edited" if state.decision == "edit" else "",
            "next": page_address(show, state.sample),
            "move": "Skip" if judgement == WAITING else "Next",
            "said": said,
        },
        diff=changed or "<em>nothing</em>",
    )


def _last(review: Review, show: str) -> str:
    """What to do where there is no sample to show."""
    verdicts = review.verdicts()
    heading, advice, step = f"Nothing is {show}.", f"{verdicts[WAITING]:,} wait for a decision.", ""
    if show == WAITING and verdicts.total():
        heading, step = "Nothing waits for a decision.", "export"
        advice = "Every decision is saved. End this page by Ctrl-C in its terminal, then type"
    elif not verdicts.total():
        heading, step = "Nothing has come as far as the review.", "filter"
        advice = "Descriptions are reviewed when the rules have judged them. End this page by Ctrl-C, then type"
    following = command("curate", step, *review.arguments) if step else ""
    return _fill("done.html", {"heading": heading, "advice": advice, "command": following})


def _option(name: str, count: int, selected: bool) -> str:
    value = html.escape(name)
    return f'<option value="{value}"{" selected" if selected else ""}>{value} ({count:,})</option>'


def _back(review: Review, show: str, before: str) -> str:
    if review.sample(before) is None:
        return ""
    return f'<a id="back" class="button" href="{html.escape(page_address(show, sample=before))}">Back <kbd>B</kbd></a>'


def _small(review: Review, state: SampleState, show: str, current: bool) -> str:
    address = html.escape(page_address(show, sample=state.sample))
    title = html.escape(f"sample {state.sample}: {verdict(state)}")
    here = " aria-current=page" if current else ""
    return (
        f'<a class="{_kind(state)}" href="{address}" title="{title}"{here}>'
        f'<img src="{html.escape(_image_address(review, state))}" alt="{title}" loading="lazy"></a>'
    )


def _image_address(review: Review, state: SampleState) -> str:
    return f"/image/{quote(state.sample, safe='')}.jpg?v={review.version}"


def _kind(state: SampleState) -> str:
    """The verdict as a name for style sheets."""
    return verdict(state).split()[0]


def _fill(file: str, values: Mapping[str, str], **markup: str) -> str:
    """A template with texts, which are escaped, and markup, which is not."""
    template = Template(Path(asset(f"review/{file}")).read_text(encoding="utf-8"))
    return template.substitute({key: html.escape(value, quote=True) for key, value in values.items()}, **markup)
