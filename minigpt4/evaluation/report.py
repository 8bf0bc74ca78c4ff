"""report.html: one page, with nothing to load, on which to look at what the checkpoints said."""

from __future__ import annotations

import base64
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal
from urllib.parse import quote

from PIL import Image, ImageOps

from minigpt4.common.files import write_atomically
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.table import best_rows, column, columns_of

logger = logging.getLogger(__name__)
LONGER_SIDE = 360
"""Pixels of a thumbnail's longer side."""


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a URI that a page can carry, e.g. for `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(path: Path, longer_side: int = LONGER_SIDE) -> str | None:
    """The picture as a JPEG data URI, None where it cannot be read.

    Args:
        path: any picture that Pillow reads.
        longer_side: pixels at most; a smaller picture keeps its size.
    """
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image)
            small.thumbnail((longer_side, longer_side))
            buffer = io.BytesIO()
            _on_white(small).save(buffer, format="JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.debug("no thumbnail of %s: %s", path, error)
        return None
    return data_uri(buffer.getvalue(), "image/jpeg")


def relative_link(path: Path, page: Path) -> str | None:
    """The picture's address as seen from the page, None where there is no picture."""
    if not path.is_file():
        return None
    try:
        return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())
    except ValueError:
        # On Windows another drive cannot be reached by a relative path.
        return path.resolve().as_uri()


def _on_white(image: Image.Image) -> Image.Image:
    """JPEG has no transparency."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


RANKED_BY = ("CIDEr", "METEOR", "ROUGE_L", "Bleu_4", "SPICE")
"""The first of these that was measured ranks the images."""
_SHOWN = ("CIDEr", "METEOR", "ROUGE_L", "Bleu_4", "SPICE")

Pictures = Literal["embed", "link"]
Intervals = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Sample:
    """One image and what was said of it.

    Attributes:
        image_id: the image.
        references: its reference captions.
        predictions: checkpoint -> caption.
        scores: checkpoint -> metric -> score of this image.
        filename: the picture's file name, shown as the card's title; empty where unknown.
        image: where the picture lies, None where unknown.
    """

    image_id: str
    references: Sequence[str]
    predictions: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    filename: str = ""
    image: Path | None = None


@dataclass(frozen=True)
class ReportCounts:
    """What a report holds.

    Attributes:
        samples: images scored.
        cards: images shown.
        missing_pictures: cards whose picture could not be read.
    """

    samples: int
    cards: int
    missing_pictures: int


def write_report(
    path: str | Path,
    protocol: Protocol,
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    *,
    title: str = "Evaluation",
    trends: str | Path | None = None,
    intervals: Intervals | None = None,
    max_cards: int = 200,
    pictures: Pictures = "embed",
) -> ReportCounts:
    """Write the page.

    Args:
        path: the HTML file.
        protocol: how the scores were made.
        rows: {"checkpoint": label, metric: value}, in the order of training.
        samples: the images, in the dataset's order.
        title: the page's heading.
        trends: a PNG to show, which is put into the page.
        intervals: checkpoint -> metric -> (lower, upper).
        max_cards: images shown at most: one half the best, the other the worst, of the last checkpoint.
        pictures: `embed` puts thumbnails into the page; `link` points to the files, for many cards.

    Returns:
        The counts, which the page states as well.
    """
    path = Path(path)
    labels = [str(row["checkpoint"]) for row in rows]
    metric = next((name for name in RANKED_BY if any(name in row for row in rows)), RANKED_BY[0])
    chosen = select_samples(samples, labels[-1] if labels else "", metric, max_cards)
    sources = {index: _source(sample, path, pictures) for index, sample in chosen}
    cards = [_card(index, sample, labels, metric, sources[index]) for index, sample in chosen]
    counts = ReportCounts(len(samples), len(chosen), sum(source is None for source in sources.values()))
    folder = resources.files("minigpt4") / "assets" / "report"
    css, js, page = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js", "report.html"))
    text = Template(page).substitute(
        css=css,
        js=js,
        title=escape(title),
        summary=escape(protocol.summary()),
        table=_table(rows),
        intervals=_intervals(intervals or {}),
        protocol=_definitions(protocol.to_dict()),
        trends=_trends(trends),
        selection=escape(_selection(counts, labels, metric, max_cards)),
        options="".join(
            f'<option value="{i}"{" selected" if i == len(labels) - 1 else ""}>{escape(label)}</option>'
            for i, label in enumerate(labels)
        ),
        first=escape(labels[0] if labels else ""),
        cards="\n".join(cards),
    )
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", errors="replace")))
    return counts


def select_samples(samples: Sequence[Sample], label: str, metric: str, most: int) -> list[tuple[int, Sample]]:
    """The samples to show with their places in the dataset, best first.

    Args:
        samples: all of them.
        label: the checkpoint whose scores rank them.
        metric: the score that ranks them.
        most: how many; where there are more, half of it are the best and the rest the worst.
    """

    def rank(entry: tuple[int, Sample]) -> float:
        return -_score(entry[1], label, metric)

    ranked = sorted(enumerate(samples), key=rank)
    if len(ranked) <= most:
        return ranked
    worst = most // 2
    return ranked[: most - worst] + (ranked[-worst:] if worst else [])


def _score(sample: Sample, label: str, metric: str) -> float:
    value = sample.scores.get(label, {}).get(metric, 0.0)
    return value if math.isfinite(value) else 0.0


def _source(sample: Sample, page: Path, pictures: Pictures) -> str | None:
    if sample.image is None:
        return None
    return relative_link(sample.image, page) if pictures == "link" else thumbnail(sample.image)


def _selection(counts: ReportCounts, labels: Sequence[str], metric: str, most: int) -> str:
    name = column(metric).label
    said = f"All {counts.cards:,} images."
    if counts.cards < counts.samples:
        worst = most // 2
        said = (
            f"{counts.cards:,} of {counts.samples:,} images: the {most - worst:,} best and the {worst:,} worst of "
            f"{labels[-1] if labels else 'the last checkpoint'}, by {name}. The scores above are those of all images."
        )
    if counts.missing_pictures:
        said += f" {counts.missing_pictures:,} of their pictures could not be read."
    return f"{said} Cards are ordered by the {name} of each image."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = columns_of(rows)
    head = "".join(f'<th scope="col">{escape(item.label)}</th>' for item in columns)
    best = {item.key: best_rows(list(rows), item) for item in columns}
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            ('<td class="best">' if index in best[item.key] else "<td>") + f"{item.show(row.get(item.key))}</td>"
            for item in columns
        )
        lines.append(f"<tr><td>{escape(str(row['checkpoint']))}</td>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<table class="scores"><thead><tr><th scope="col">Checkpoint</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>"
    )


def _intervals(intervals: Intervals) -> str:
    """95 % intervals as a list under the table."""
    lines = [
        (label, ", ".join(f"{column(key).label} {low:.3f} to {high:.3f}" for key, (low, high) in found.items()))
        for label, found in intervals.items()
        if found
    ]
    if not lines:
        return ""
    return f"<details><summary>95 % intervals over the images</summary>{_definitions(dict(lines))}</details>"


def _definitions(content: Mapping[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{key}: {show(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(show, value))
        return str(value)

    items = (f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(show(v))}</dd>" for key, v in content.items())
    return f"<dl>{''.join(items)}</dl>"


def _trends(trends: str | Path | None) -> str:
    if trends is None:
        return ""
    source = data_uri(Path(trends).read_bytes(), "image/png")
    return f'<section><h2>From checkpoint to checkpoint</h2><img class="trends" alt="Metrics" src="{source}"></section>'


def _card(index: int, sample: Sample, labels: Sequence[str], metric: str, source: str | None) -> str:
    title = escape(sample.filename or sample.image_id)
    picture = "no picture" if source is None else f'<img loading="lazy" alt="{title}" src="{escape(source)}">'
    number = f" <span>{escape(sample.image_id)}</span>" if sample.filename else ""
    references = "".join(f"<li>{escape(text)}</li>" for text in sample.references)
    answers = "".join(_answer(sample, label) for label in labels)
    scores = ",".join(f"{_score(sample, label, metric):.6g}" for label in labels)
    return (
        f'<article class="card" data-index="{index}" data-scores="{scores}">'
        f'<div class="picture">{picture}</div><div class="body"><h3>{title}{number}</h3>'
        f'<h4>References</h4><ol class="refs">{references}</ol>'
        f'<h4>Predictions</h4><ul class="preds">{answers}</ul></div></article>'
    )


def _answer(sample: Sample, label: str) -> str:
    found = sample.scores.get(label, {})
    scores = " · ".join(f"{column(key).label} {found[key]:.2f}" for key in _SHOWN if key in found)
    caption = sample.predictions.get(label, "")
    text = f"<p>{escape(caption)}</p>" if caption.strip() else '<p class="empty">(nothing)</p>'
    line = (
        f'<div class="line"><span class="label">{escape(label)}</span><span class="score">{escape(scores)}</span></div>'
    )
    return f"<li>{line}{text}</li>"
