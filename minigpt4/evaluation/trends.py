"""How every metric moved from checkpoint to checkpoint: metric_trends.png and .svg, and the report's plots."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from minigpt4.common.files import write_atomically, write_text
from minigpt4.evaluation.statistics import Intervals
from minigpt4.evaluation.table import Row, column, is_number

COLOURS = {
    "Bleu_1": "#74b3dc",
    "Bleu_2": "#3f8fc9",
    "Bleu_3": "#1f62a8",
    "Bleu_4": "#08306b",
    "ROUGE_L": "#009e73",
    "METEOR": "#cc79a7",
    "SPICE": "#e69f00",
    "CIDEr": "#d55e00",
    "Bleu_4_shuffled": "#888888",
    "ROUGE_L_shuffled": "#888888",
    "METEOR_shuffled": "#888888",
    "SPICE_shuffled": "#888888",
    "CIDEr_shuffled": "#888888",
    "object_accuracy": "#6a3d9a",
    "all_objects_accuracy": "#b15928",
    "object_accuracy_shuffled": "#888888",
    "CHAIR_i": "#d55e00",
    "CHAIR_s": "#e69f00",
    "object_recall": "#009e73",
    "accuracy": "#1f62a8",
    "accuracy_shuffled": "#888888",
    "AUROC": "#e69f00",
    "F1": "#009e73",
    "F1_shuffled": "#888888",
    "IoU_50": "#d55e00",
    "IoU_50_shuffled": "#888888",
    "AP": "#e69f00",
    "AP50": "#6a3d9a",
    "AP50_shuffled": "#888888",
    "box_F1": "#b15928",
}
"""One colour per metric in every plot; the first five can be told apart by colour-blind readers as well (Okabe-Ito)."""
PANELS = (
    ("BLEU", ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "Bleu_4_shuffled")),
    (
        "ROUGE-L, METEOR, SPICE",
        ("ROUGE_L", "METEOR", "SPICE", "ROUGE_L_shuffled", "METEOR_shuffled", "SPICE_shuffled"),
    ),
    ("CIDEr", ("CIDEr", "CIDEr_shuffled")),
    ("Objects named correctly", ("object_accuracy", "all_objects_accuracy", "object_accuracy_shuffled")),
    ("Objects that are not there", ("CHAIR_i", "CHAIR_s", "object_recall")),
    ("Accuracy", ("accuracy", "accuracy_shuffled")),
    ("Area under the ROC curve", ("AUROC",)),
    ("F1 of yes", ("F1", "F1_shuffled")),
    ("Boxes with an IoU of at least 0.5", ("IoU_50", "IoU_50_shuffled")),
    ("Detection", ("AP", "AP50", "AP50_shuffled", "box_F1")),
)
"""(title, metrics) of each panel."""
_INK, _GREY, _GRID, _AXIS, _GROUND = "#222222", "#666666", "#e6e6e6", "#bbbbbb", "#ffffff"
DARK = {
    "#74b3dc": "#4a7aa3",
    "#3f8fc9": "#6c9fca",
    "#1f62a8": "#96c3e8",
    "#08306b": "#d6e9f9",
    "#009e73": "#2fc79b",
    "#cc79a7": "#e59bc4",
    "#e69f00": "#f0b73a",
    "#d55e00": "#ff8a3d",
    "#888888": "#9a9fa8",
    "#6a3d9a": "#b993e6",
    "#b15928": "#dd9466",
    _INK: "#e7e9ee",
    _GREY: "#a0a7b4",
    _GRID: "#343943",
    _AXIS: "#5a606c",
    _GROUND: "#1d2026",
}
"""Colour on a light ground -> colour on a dark one."""
_PANEL_SIZE = (4.2, 3.3)
"""Inches of a panel of the report; it becomes wider with many checkpoints."""
_MAX_LABEL = 18
"""Characters of a checkpoint's name under an axis."""


def plot_trends(
    path: Path,
    rows: Sequence[Row],
    intervals: Intervals | None = None,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw one small panel per group of metrics, the checkpoints from left to right.

    Args:
        path: path of the PNG.
        rows: one row per checkpoint, in the order of training.
        intervals: checkpoint -> metric -> (lower, upper), drawn as a band.
        title: text above the panels.
        subtitle: text below the title, e.g. the protocol.
    """
    groups = _groups(rows)
    labels = _tick_labels([str(row.get("checkpoint", "")) for row in rows])
    across = min(len(groups), 4) or 1
    # Many checkpoints need wider panels, so that four of them no longer fit side by side.
    width = max(3.5, 1.6 + 0.42 * len(rows))
    across = max(1, min(across, int(16 // width)))
    if across == 3 and len(groups) == 4:
        across = 2
    down = max(1, math.ceil(len(groups) / across))
    head = 0.75 if subtitle else 0.45 if title else 0.1
    size = (width * across, 3.3 * down + head)
    figure = Figure(figsize=size, dpi=144, facecolor=_GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head / size[1]), w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    if title:
        figure.text(
            0.12 / size[0],
            1 - 0.14 / size[1],
            title,
            va="top",
            fontsize=13,
            weight="bold",
            color=_INK,
            parse_math=False,
        )
    if subtitle:
        subtitle = _shorten(subtitle, int(size[0] * 14))
        figure.text(0.12 / size[0], 1 - 0.44 / size[1], subtitle, va="top", fontsize=8.5, color=_GREY, parse_math=False)
    for index, (name, keys) in enumerate(groups):
        _draw_panel(figure.add_subplot(down, across, index + 1), name, keys, rows, labels, intervals or {})
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def panel_svgs(rows: Sequence[Row], intervals: Intervals | None = None) -> list[str]:
    """Each panel as an SVG element for a page that has the variables of `svg_colours`.

    Args:
        rows: one row per checkpoint, in the order of training.
        intervals: checkpoint -> metric -> (lower, upper), drawn as a band.
    """
    labels = _tick_labels([str(row.get("checkpoint", "")) for row in rows])
    size = (max(_PANEL_SIZE[0], 1.6 + 0.42 * len(rows)), _PANEL_SIZE[1])
    found = []
    for number, (name, keys) in enumerate(_groups(rows)):
        figure = Figure(figsize=size, layout="constrained")
        _draw_panel(figure.add_subplot(), name, keys, rows, labels, intervals or {})
        buffer = io.StringIO()
        # Text stays text, and the same plot gets the same names inside the file.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "trends"}):
            figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_SVG_METADATA))
        found.append(_for_a_page(buffer.getvalue(), f"panel{number}-", name))
    return found


def write_svg(path: Path, panels: Sequence[str], title: str, subtitle: str) -> None:
    """Write the panels, two beside each other, as a file of its own that follows a dark or light setting.

    Args:
        path: path of the SVG.
        panels: what `panel_svgs` returned.
        title: text above the panels.
        subtitle: text below the title.
    """
    sizes = [tuple(map(float, _VIEW_BOX.search(panel).group(1, 2))) for panel in panels]  # type: ignore[union-attr]
    wide, high = max((size[0] for size in sizes), default=300.0), max((size[1] for size in sizes), default=0.0)
    across, head, gap = min(2, max(1, len(panels))), 46, 12
    down = math.ceil(len(panels) / across)
    width, height = across * (wide + gap) + gap, head + down * (high + gap)
    placed = "".join(
        panel.replace(
            "<svg ",
            f'<svg x="{gap + n % across * (wide + gap)}" y="{head + n // across * (high + gap)}" '
            f'width="{size[0]}" height="{size[1]}" ',
            1,
        )
        for n, (panel, size) in enumerate(zip(panels, sizes, strict=True))
    )
    size = f'viewBox="0 0 {width:g} {height:g}" width="{1.5 * width:g}" height="{1.5 * height:g}"'
    ground, ink, grey = (f'fill="var({_variable(colour)})"' for colour in (_GROUND, _INK, _GREY))
    subtitle = escape(_shorten(subtitle, int(width / 4.6)))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        f"<style>{svg_colours()}text {{ font-family: system-ui, sans-serif; }}</style>"
        f'<rect width="100%" height="100%" {ground}/>'
        f'<text x="{gap}" y="20" font-size="13" font-weight="bold" {ink}>{escape(title)}</text>'
        f'<text x="{gap}" y="36" font-size="8.5" {grey}>{subtitle}</text>'
        f"{placed}</svg>\n"
    )
    write_text(path, text)


def svg_colours() -> str:
    """CSS that gives every colour of the plots its value on a light and on a dark ground."""
    light, dark = (
        " ".join(f"{_variable(key)}: {value};" for key, value in found)
        for found in (((key, key) for key in DARK), DARK.items())
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


_SVG_METADATA = ("Creator", "Date", "Format", "Type")
"""What matplotlib would write about itself and the time."""
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def _variable(colour: str) -> str:
    return f"--plot-{colour[1:]}"


def _for_a_page(svg: str, prefix: str, name: str) -> str:
    """A figure as matplotlib writes it -> an element for a page: its own ids, the page's font and colours."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<defs>\s*<style.*?</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"font-family: [^;\"]*|(?<=px) 'DejaVu[^;\"]*", "", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var({_variable(found[0])})" if found[0] in DARK else found[0], svg)
    svg = re.sub(r"\n\s*", " ", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" stroke-linejoin="round" ', 1).strip()


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """(title, metrics that were measured) of each panel that has some."""
    return [
        (name, present)
        for name, keys in PANELS
        if (present := [key for key in keys if any(is_number(row.get(key)) for row in rows)])
    ]


def _draw_panel(
    axes: Axes,
    name: str,
    keys: Sequence[str],
    rows: Sequence[Row],
    labels: Sequence[str],
    intervals: Intervals,
) -> None:
    for key in keys:
        _draw_line(axes, key, rows, intervals)
    _style_axes(axes, labels)
    low, high = axes.get_ylim()
    if column(keys[0]).percent:
        axes.set_ylim(0, 1.08)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(min(0.0, low), max(high, 0.01) * 1.04)
    _label_ends(axes, keys, rows)
    shown = ", ".join(column(key).label for key in keys) if len(keys) < 3 and name.startswith("ROUGE") else name
    axes.set_title(shown, loc="left", fontsize=10.5, weight="bold", color=_INK, pad=24)
    if len(keys) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=len(keys),
            fontsize=7.5,
            labelcolor=_INK,
            frameon=False,
            handlelength=1.1,
            handletextpad=0.35,
            columnspacing=0.8,
            borderpad=0.1,
        )


def _draw_line(axes: Axes, key: str, rows: Sequence[Row], intervals: Intervals) -> None:
    """One metric: a line with a marker per checkpoint, and a band where intervals are known."""
    points = [(i, float(row[key])) for i, row in enumerate(rows) if is_number(row.get(key))]
    item = column(key)
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=COLOURS.get(key, _INK),
        linestyle="-" if item.compared else (0, (4, 2)),
        linewidth=2,
        marker="o",
        markersize=5,
        markeredgecolor=_GROUND,
        markeredgewidth=0.8,
        label=item.label,
        clip_on=False,
        zorder=3,
    )
    known = [(i, intervals.get(str(row.get("checkpoint")), {}).get(key)) for i, row in enumerate(rows)]
    band = [(i, ends[0], ends[1]) for i, ends in known if ends]
    if len(band) > 1:
        xs, lows, highs = zip(*band, strict=True)
        axes.fill_between(xs, lows, highs, color=COLOURS.get(key, _INK), alpha=0.13, linewidth=0, zorder=1)
    elif band:
        x, low, high = band[0]
        axes.vlines(x, low, high, color=COLOURS.get(key, _INK), alpha=0.35, linewidth=3, zorder=1)


def _style_axes(axes: Axes, labels: Sequence[str]) -> None:
    """Plain axes: faint horizontal lines, and names that never overlap."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_AXIS)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_GREY, labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    crowded = len(labels) > 1 and (max(map(len, labels)) > 7 or len(labels) > 6)
    axes.set_xticks(range(len(labels)), labels, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    for label in axes.get_xticklabels():
        # A dollar sign in a checkpoint's name does not begin a formula.
        label.set_parse_math(False)
        if crowded:
            label.set_rotation_mode("anchor")
    axes.set_xlim(-0.35, len(labels) - 1 + 0.35)


def _label_ends(axes: Axes, keys: Sequence[str], rows: Sequence[Row]) -> None:
    """Write every line's last value beside it; values that would overlap are spread."""
    ends = []
    for key in keys:
        points = [(i, float(row[key])) for i, row in enumerate(rows) if is_number(row.get(key))]
        ends.append((points[-1][1], points[-1][0], key))
    low, high = axes.get_ylim()
    ends.sort()
    levels = _spread([value for value, _, _ in ends], gap=0.07 * (high - low))
    for (value, x, key), level in zip(ends, levels, strict=True):
        axes.annotate(
            column(key).format(value),
            (x, level),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            weight="bold",
            color=COLOURS.get(key, _INK),
            annotation_clip=False,
        )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Rising values, moved as little as possible to lie at least `gap` apart: neighbours move equally far."""
    # Each cluster is a run of values stacked at equal distances around its mean.
    clusters: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while clusters and mean - clusters[-1][0] < gap * (size + clusters[-1][1]) / 2:
            before, count = clusters.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        clusters.append((mean, size))
    return [mean + gap * (place - (size - 1) / 2) for mean, size in clusters for place in range(size)]


def _tick_labels(names: Sequence[str]) -> list[str]:
    """The names without the folder that all of them share, short enough to fit under an axis."""
    folder = names[0].rpartition("/")[0] if names else ""
    if folder and all(name.startswith(f"{folder}/") for name in names):
        names = [name[len(folder) + 1 :] for name in names]
    return [_shorten(name) for name in names]


def _shorten(name: str, longest: int = _MAX_LABEL) -> str:
    """The name without its middle where it is too long: both ends tell checkpoints apart."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[: longest - 1 - half]}…{name[-half:]}"
