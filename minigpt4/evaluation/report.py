"""report.html: one self-contained page that shows the images, their references and every checkpoint's captions."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image

from minigpt4.common.errors import DataError, counted
from minigpt4.common.files import write_text
from minigpt4.evaluation.predictions import Protocol
from minigpt4.evaluation.statistics import Comparisons, Intervals
from minigpt4.evaluation.table import SHOWN, Column, Row, ScoreTable, best_rows, column, columns_of
from minigpt4.evaluation.trends import svg_colours

if TYPE_CHECKING:
    from minigpt4.common.boxes import Box

LONGER_SIDE = 480
"""Pixels of a thumbnail's longer side; a smaller image keeps its size."""
JPEG_QUALITY = 82

CARDS_PER_PAGE = 24
SAMPLE_TRIES = 5
"""Images that are tried for the sample; unreadable ones are passed over."""
RANKED = ("mean_IoU", *SHOWN)
"""Metrics that order the images: the first that each image has."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")

OpenImage = Callable[[Path], Image.Image]
"""Opens an image as RGB, or raises a DataError."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageResult:
    """One image, or one question about it, and what every checkpoint said.

    Attributes:
        image_id: id of the image or question.
        references: reference captions, or right answers.
        predictions: checkpoint -> caption or answer.
        scores: checkpoint -> metric -> score of this image or question.
        filename: file name of the image, shown as the card's title; empty where unknown.
        path: path of the image, None where unknown.
        question: the question; empty for captions.
        kind: kind of the question; empty where there are no kinds.
        boxes: the true boxes, which are drawn beside those of the predictions; None: the answers are no boxes.
    """

    image_id: str
    references: Sequence[str]
    predictions: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    filename: str = ""
    path: Path | None = None
    question: str = ""
    kind: str = ""
    boxes: Sequence[Box] | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image.

    Attributes:
        source: the JPEG as a data URI.
        width: its width in pixels.
        height: its height in pixels.
    """

    source: str
    width: int
    height: int


def write_report(
    path: str | Path,
    protocol: Protocol,
    rows: Sequence[Row],
    images: Sequence[ImageResult],
    *,
    title: str = "Evaluation",
    trends: Sequence[str] = (),
    kinds: Sequence[ScoreTable] = (),
    intervals: Intervals | None = None,
    comparisons: Comparisons | None = None,
    leaks: Sequence[str] = (),
    max_cards: int = 200,
    open_image: OpenImage | None = None,
    made: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the page.

    Args:
        path: path of the HTML file.
        protocol: how the scores were made.
        rows: one row per checkpoint, in the order of training.
        images: the images, in the dataset's order.
        title: heading of the page.
        trends: plots as SVG elements (`panel_svgs`).
        kinds: scores of each kind of question.
        intervals: checkpoint -> metric -> (lower, upper).
        comparisons: differences between the checkpoints and the first.
        leaks: what the checkpoints were trained on among the images, a line each.
        max_cards: maximum number of images shown: half of them the best, half the worst, of the last checkpoint.
        open_image: opens an image for its thumbnail; None: no thumbnails.
        made: when, by which command and by which version, for the last line.
    """
    labels = [str(row["checkpoint"]) for row in rows]
    last = labels[-1] if labels else ""
    found = images[0].scores.get(last, {}) if images else {}
    metric = next((name for name in RANKED if name in found), SHOWN[0])
    shown = select_images(images, last, metric, max_cards)
    thumbnails = [thumbnail(image.path, open_image) for _, image in shown]
    missing = sum(source is None for source in thumbnails)
    if missing and open_image is not None:
        logger.warning("report: %d of %d images could not be read", missing, len(shown))
    name = column(metric).label
    unit = protocol.unit
    note = f"All {len(shown):,} {unit}."
    if len(shown) < len(images):
        worst = max_cards // 2
        note = (
            f"{len(shown):,} of {len(images):,} {unit}: the {max_cards - worst:,} best and the {worst:,} worst of "
            f"{last or 'the last checkpoint'}, by {name}. The scores above are those of all {unit}."
        )
    if missing:
        note += f" {missing:,} of them could not be read."
    note += f" Cards are ordered by the {name} of each {unit[:-1]}."
    if any(image.boxes is not None for _, image in shown):
        note += " Solid boxes are true, dashed ones are those of the chosen checkpoint."
    else:
        note += " Marked words are in none of the references."
    folder = resources.files("minigpt4") / "assets" / "report"
    css, js, page = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js", "report.html"))
    text = Template(page).substitute(
        css=svg_colours() + css,
        js=js,
        title=escape(title),
        summary=escape(_summary(protocol, len(rows))),
        unit=unit,
        units=unit.capitalize(),
        kinds=_kinds(kinds),
        sample=_sample(images, labels, metric, open_image),
        table=_table(rows, columns_of(rows), linked=True),
        comparisons=_comparisons(comparisons) if comparisons else "",
        leaks="".join(f'<p class="{"leak" if "LEAK" in line else "note"}">{escape(line)}</p>' for line in leaks),
        intervals=_intervals(intervals or {}, unit),
        protocol=_definitions(protocol.to_dict()),
        trends=_trends(trends),
        selection=escape(note),
        options="".join(
            f'<option value="{i}"{" selected" if i == len(labels) - 1 else ""}>{escape(label)}</option>'
            for i, label in enumerate(labels)
        ),
        first=escape(labels[0] if labels else ""),
        cards_per_page=CARDS_PER_PAGE,
        made=_made(made) if made else "",
        cards="\n".join(
            _card(index, image, labels, metric, source)
            for (index, image), source in zip(shown, thumbnails, strict=True)
        ),
    )
    write_text(Path(path), text)


def _made(made: Mapping[str, str]) -> str:
    """When, by which command and by which version, in one line of the page's source."""
    date, version, command = (escape(made[key]).replace("\n", " ") for key in ("date", "version", "command"))
    return f'<p class="note" id="made">Made {date} by version {version}: <code>{command}</code></p>'


def select_images(images: Sequence[ImageResult], label: str, metric: str, most: int) -> list[tuple[int, ImageResult]]:
    """The images to show with their indices in the dataset, best first.

    Args:
        images: all images.
        label: checkpoint whose scores rank them.
        metric: score that ranks them.
        most: maximum number; where there are more images, half of it are the best and the rest the worst.
    """
    ranked = sorted(enumerate(images), key=lambda entry: -_score(entry[1], label, metric))
    if len(ranked) <= most:
        return ranked
    worst = most // 2
    return ranked[: most - worst] + (ranked[-worst:] if worst else [])


def thumbnail(path: Path | None, open_image: OpenImage | None) -> Thumbnail | None:
    """A small copy of the image, None where it cannot be read.

    Args:
        path: path of the image.
        open_image: the model's own decoder, so that the report shows the pixels that the model saw.
    """
    if path is None or open_image is None:
        return None
    try:
        image = open_image(path)
    except DataError as error:
        logger.debug("no thumbnail: %s", error)
        return None
    image.thumbnail((LONGER_SIDE, LONGER_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", *image.size)


def _score(image: ImageResult, label: str, metric: str) -> float:
    value = image.scores.get(label, {}).get(metric, 0.0)
    return value if math.isfinite(value) else 0.0


def _table(rows: Sequence[Row], columns: Sequence[Column], *, linked: bool = False) -> str:
    """A table of scores; where it is `linked`, a checkpoint's name leads to its worst images."""
    head = "".join(f'<th scope="col">{escape(item.label)}</th>' for item in columns)
    best = {item.key: best_rows(rows, item) for item in columns}
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            ('<td class="best">' if index in best[item.key] else "<td>") + f"{item.format(row.get(item.key))}</td>"
            for item in columns
        )
        name = escape(str(row["checkpoint"]))
        if linked:
            name = f'<a href="#images" data-checkpoint="{index}" title="Its worst images">{name}</a>'
        lines.append(f"<tr><td>{name}</td>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<table class="scores"><thead><tr><th scope="col">Checkpoint</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>"
    )


def _kinds(tables: Sequence[ScoreTable]) -> str:
    """The scores of each kind of question."""
    return "\n".join(
        f'<h3>{escape(table.title)}</h3>\n<div class="scroll">{_table(table.rows, table.columns or ())}</div>'
        for table in tables
    )


def _comparisons(comparisons: Comparisons) -> str:
    """Differences to the first checkpoint as a table of their own."""
    cells: dict[str, dict[str, str]] = {}
    for item in comparisons.differences:
        difference, *more = map(escape, item.parts())
        small = "".join(f"<small>{text}</small>" for text in more)
        cells.setdefault(item.checkpoint, {})[item.metric] = f"<td>{difference}{small}</td>"
    columns = columns_of(cells.values())
    head = "".join(f'<th scope="col">{escape(item.label)}</th>' for item in columns)
    body = "\n".join(
        f"<tr><td>{escape(label)}</td>{''.join(found[item.key] for item in columns)}</tr>"
        for label, found in cells.items()
    )
    return (
        f"<h3>Compared with {escape(comparisons.baseline)}</h3>\n"
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">Checkpoint</th>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>\n<p class="note">{escape(comparisons.note)}</p>'
    )


def _intervals(intervals: Intervals, unit: str) -> str:
    """95 % intervals as a list below the table."""
    lines = [
        (label, ", ".join(f"{column(key).label} {low:.3f} to {high:.3f}" for key, (low, high) in found.items()))
        for label, found in intervals.items()
        if found
    ]
    if not lines:
        return ""
    return f"<details><summary>95 % intervals over the {unit}</summary>{_definitions(dict(lines))}</details>"


def _definitions(content: Mapping[str, Any]) -> str:
    def plain(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{key}: {plain(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(plain, value))
        return str(value)

    items = (f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(plain(v))}</dd>" for key, v in content.items())
    return f"<dl>{''.join(items)}</dl>"


def _trends(panels: Sequence[str]) -> str:
    if not panels:
        return ""
    shown = "".join(f"<figure>{panel}</figure>" for panel in panels)
    return f'<section><h2>From checkpoint to checkpoint</h2><div class="trends">{shown}</div></section>'


def _summary(protocol: Protocol, checkpoints: int) -> str:
    """What is under the heading: counts only, since the rest stands below the scores."""
    part = "".join(f", {key} {value}" for key, value in protocol.selection.items())
    images, several = counted(protocol.images, protocol.unit), counted(checkpoints, "checkpoints")
    return f"{images}{part}, {protocol.references_each}, {several}"


def _sample(images: Sequence[ImageResult], labels: Sequence[str], metric: str, open_image: OpenImage | None) -> str:
    """One image with what the first and the last checkpoint said of it.

    It is neither the best nor the worst: its gain is the median of all images, of those with an image that can be read.
    """
    if not labels:
        return ""
    first, last = labels[0], labels[-1]

    def gain(image: ImageResult) -> float:
        before = _score(image, first, metric) if first != last else 0.0
        return _score(image, last, metric) - before

    ranked = sorted(images, key=gain)
    middle = len(ranked) // 2
    for place in sorted(range(len(ranked)), key=lambda place: abs(place - middle))[:SAMPLE_TRIES]:
        image = ranked[place]
        source = thumbnail(image.path, open_image)
        if source is None:
            continue
        what = f"gain from {first} to {last}" if first != last else "score"
        shown = [first, last] if first != last else [last]
        question = f"<p>{escape(image.question)}</p>" if image.question else ""
        answers = "".join(_answer(image, label) for label in shown)
        return (
            f'<section class="sample"><div class="image">{_image(image, source, [last])}</div><div>'
            f'<p class="note">An image in the middle: half of all images have a larger {column(metric).label} {what}, '
            f"half a smaller one.</p>{question}"
            f'<ul class="preds">{answers}</ul><p class="refs"><span class="label">Reference</span> '
            f"{escape(next(_references(image), ''))}</p></div></section>"
        )
    return ""


def _image(image: ImageResult, small: Thumbnail, labels: Sequence[str]) -> str:
    """A thumbnail, with boxes over it, that is enlarged by a click or the Enter key."""
    title = escape(image.filename or image.image_id)
    return (
        f'<button type="button" class="zoom" title="Enlarge"><img loading="lazy" alt="{title}" '
        f'src="{escape(small.source)}">{_overlay(image, small, labels)}</button>'
    )


def _overlay(image: ImageResult, small: Thumbnail, labels: Sequence[str]) -> str:
    """The true boxes and those of the checkpoints' answers, over the image; nothing where the answers are no boxes."""
    if image.boxes is None:
        return ""
    from minigpt4.evaluation.structured import detected_boxes  # reports of captions need none

    found = "".join(
        f'<g data-found="{index}">{_rectangles(detected_boxes(image.predictions.get(label, "")), small, "found")}</g>'
        for index, label in enumerate(labels)
    )
    return (
        f'<svg class="boxes" viewBox="0 0 {small.width} {small.height}" aria-hidden="true">'
        f"{_rectangles(image.boxes, small, 'true')}{found}</svg>"
    )


def _rectangles(boxes: Sequence[Box], small: Thumbnail, style: str) -> str:
    return "".join(
        f'<rect class="{style}" x="{box.left * small.width:.1f}" y="{box.top * small.height:.1f}" '
        f'width="{(box.right - box.left) * small.width:.1f}" height="{(box.bottom - box.top) * small.height:.1f}">'
        f"<title>{escape(box.label)}</title></rect>"
        for box in boxes
    )


def _references(image: ImageResult) -> Iterator[str]:
    """The references; those that several people gave once, with their number."""
    if image.boxes is not None:
        return (f"{box.label} {box.text}".strip() for box in image.boxes)
    if not image.question:
        return iter(image.references)
    return (f"{text} × {count}" if count > 1 else text for text, count in Counter(image.references).most_common())


def _card(index: int, image: ImageResult, labels: Sequence[str], metric: str, small: Thumbnail | None) -> str:
    title = escape(image.filename or image.image_id)
    shown = "no image" if small is None else _image(image, small, labels)
    known = image.image_id in (image.filename, Path(image.filename).stem) or not image.filename
    number = "" if known else f" <span>{escape(image.image_id)}</span>"
    references = "".join(f"<li>{escape(text)}</li>" for text in _references(image))
    kind = f" <span>{escape(image.kind)}</span>" if image.kind else ""
    question = f'<p class="question">{escape(image.question)}{kind}</p>' if image.question else ""
    truth, said = ("Truth", "Answers") if image.question else ("References", "Predictions")
    answers = "".join(_answer(image, label) for label in labels)
    scores = ",".join(f"{_score(image, label, metric):.6g}" for label in labels)
    return (
        f'<article class="card" data-index="{index}" data-scores="{scores}">'
        f'<div class="image">{shown}</div><div class="body"><h3>{title}{number}</h3>{question}'
        f'<h4>{truth}</h4><ol class="refs">{references}</ol>'
        f'<h4>{said}</h4><ul class="preds">{answers}</ul></div></article>'
    )


def _answer(image: ImageResult, label: str) -> str:
    found = image.scores.get(label, {})
    scores = " · ".join(f"{column(key).label} {found[key]:.2f}" for key in SHOWN if key in found)
    caption = image.predictions.get(label, "")
    shown = _marked(caption, image.references) if image.boxes is None else escape(caption)
    text = f"<p>{shown}</p>" if caption.strip() else '<p class="empty">(nothing)</p>'
    line = (
        f'<div class="line"><span class="label">{escape(label)}</span><span class="score">{escape(scores)}</span></div>'
    )
    return f"<li>{line}{text}</li>"


def _marked(caption: str, references: Sequence[str]) -> str:
    """The caption as HTML; words that no reference has are marked, whatever their case."""
    known = {word.casefold() for text in references for word in _WORD.findall(text)}
    if not known:
        return escape(caption)
    parts, end = [], 0
    for found in _WORD.finditer(caption):
        parts.append(escape(caption[end : found.start()]))
        word = escape(found[0])
        parts.append(word if found[0].casefold() in known else f"<mark>{word}</mark>")
        end = found.end()
    return "".join([*parts, escape(caption[end:])])
