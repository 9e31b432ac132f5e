"""The pictures of a run: acceptance per slot, reliability, thresholds, speed against batch size.

Drawn without a display and without the network; text and axes of a picture inside a page take the page's colour.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dspark_hf.evaluation.figures.summary import ALL_TASKS
from dspark_hf.evaluation.running.ways import PLAIN
from dspark_hf.files import whole_file

# Seen on white and on black.
_COLOURS = ("#3b82c4", "#e07b39", "#2a9d74", "#c2528b", "#8a6fd1", "#b59a1d", "#5f9ea0", "#a0654e")
# What tells lines of one colour apart, where there are more than colours.
_MARKERS, _HATCHES = "os^Dvp", ("", "///", "...", "xxx", "---", "ooo")
# Stands for the colour of the text around a picture, and is replaced by it.
_INK = "#0b0c0d"
_SIZE, _LEGEND_LINE = (6.2, 3.8), 0.19  # inches

Summaries = Mapping[str, Mapping[str, Any]]


def all_charts(summaries: Summaries) -> dict[str, tuple[str, Figure]]:
    """Every picture that has something to show.

    Args:
        summaries (`Mapping`): Summaries by the run's name.

    Returns:
        `dict`: Title and picture by file name without its end.
    """
    charts = {
        "tau": ("Tokens per round by task (the paper's Table 1)", tau_chart(summaries)),
        "acceptance": ("Acceptance of each slot, given all before it (Figure 2)", acceptance_chart(summaries)),
        "reliability": ("Confidence against acceptance (Figure 5)", reliability_chart(summaries)),
        "thresholds": ("What a confidence threshold saves and costs (Figure 6)", threshold_chart(summaries)),
        "throughput": ("Speed against batch size (Figure 8)", throughput_chart(summaries)),
    }
    return {name: (title, figure) for name, (title, figure) in charts.items() if figure is not None}


def tau_chart(summaries: Summaries) -> Figure | None:
    """Bars of tau of runs, `summaries` by name: a group a task, a colour a way, at each way's smallest batch size."""
    lines = list(_lines(summaries, together=False))
    lines = [(label, [row for row in rows if row["tau"] is not None]) for label, rows in lines]
    lines = [(label, rows) for label, rows in lines if rows]
    if not lines:
        return None
    # A picture that stands alone says what is a cut, too.
    cuts = {row["task"]: row["cut"] for _, rows in lines for row in rows}
    tasks, names = list(cuts), [f"{task}\n({cut})" if cut else task for task, cut in cuts.items()]
    figure, axes = _figure(width=max(_SIZE[0], 0.9 * len(tasks) + 1.5))
    width = 0.8 / len(lines)
    for index, (label, rows) in enumerate(lines):
        places = [tasks.index(row["task"]) + (index - (len(lines) - 1) / 2) * width for row in rows]
        errors = [_error(row["tau"], row["tau_interval"]) for row in rows]
        axes.bar(places, [row["tau"] for row in rows], width, color=_colour(index), hatch=_again(_HATCHES, index),
                 edgecolor=_INK, linewidth=0, label=label,
                 yerr=list(zip(*errors, strict=True)), ecolor=_INK, error_kw={"linewidth": 0.8})  # fmt: skip
    axes.set(ylabel="tokens per round (plain: 1)", ylim=(1, axes.get_ylim()[1] * 1.1))
    axes.set_xticks(range(len(tasks)), names, rotation=30, ha="right")
    return _done(figure, axes)


def acceptance_chart(summaries: Summaries) -> Figure | None:
    """How often each slot is accepted, given all before it, in runs, `summaries` by name."""
    lines = [(label, rows[0]["accepted_per_slot_given_previous"]) for label, rows in _lines(summaries)]
    lines = [(label, rates) for label, rates in lines if rates]
    if not lines:
        return None
    figure, axes = _figure()
    for index, (label, rates) in enumerate(lines):
        axes.plot(range(1, len(rates) + 1), rates, marker=_again(_MARKERS, index), color=_colour(index), label=label)
    axes.set(xlabel="slot", ylabel="accepted, given all before", ylim=(0, 1))
    axes.set_xticks(range(1, max(len(rates) for _, rates in lines) + 1))
    return _done(figure, axes)


def reliability_chart(summaries: Summaries) -> Figure | None:
    """Acceptance against confidence in runs, `summaries` by name; the area of a point is its share of the slots."""
    lines = [(label, rows[0]["confidence"]) for label, rows in _lines(summaries) if rows[0]["confidence"]]
    if not lines:
        return None
    figure, axes = _figure()
    axes.plot((0, 1), (0, 1), linestyle="--", color=_INK, linewidth=0.8, alpha=0.6)
    for index, (label, confidence) in enumerate(lines):
        bins = confidence["reliability"]
        points = [one["confidence"] for one in bins], [one["accepted"] for one in bins]
        most = max(one["count"] for one in bins)
        axes.plot(*points, color=_colour(index), linewidth=1, alpha=0.4)
        areas = [5 + 80 * one["count"] / most for one in bins]
        axes.scatter(*points, s=areas, color=_colour(index), marker=_again(_MARKERS, index), zorder=3, clip_on=False,
                     label=f"{label} (ECE {confidence['ece']:.1%})")  # fmt: skip
    axes.set(xlabel="confidence", ylabel="accepted", xlim=(0, 1), ylim=(0, 1))
    return _done(figure, axes)


def threshold_chart(summaries: Summaries) -> Figure | None:
    """Tau against verified drafts a round, one point a threshold on survival, in runs, `summaries` by name."""
    lines = [(label, rows[0]["sweep"]) for label, rows in _lines(summaries) if rows[0]["sweep"]]
    if not lines:
        return None
    figure, axes = _figure()
    for index, (label, sweep) in enumerate(lines):
        axes.plot([one["verified"] for one in sweep], [one["tau"] for one in sweep], markersize=3,
                  marker=_again(_MARKERS, index), color=_colour(index), label=label)  # fmt: skip
        for one in sweep[:: max(1, len(sweep) // 4)]:
            axes.annotate(f"{one['threshold']:g}", (one["verified"], one["tau"]), xytext=(3, -10),
                          textcoords="offset points", fontsize=7, color=_INK)  # fmt: skip
    axes.set(xlabel="drafts verified a round", ylabel="tokens per round")
    return _done(figure, axes)


def throughput_chart(summaries: Summaries) -> Figure | None:
    """Tokens per second over plain generate()'s against the batch size, of those of `summaries` with several sizes."""
    figure, axes = _figure()
    index, sizes = 0, set()
    for name, summary in summaries.items():
        rows = [row for row in _joint(summary) if row["ratio"] is not None and row["way"] != PLAIN]
        for temperature, way in dict.fromkeys((row["temperature"], row["way"]) for row in rows):
            line = [row for row in rows if (row["temperature"], row["way"]) == (temperature, way)]
            if len(line) > 1:
                errors = [_error(row["ratio"]["median"], row["ratio"]["interval"]) for row in line]
                axes.errorbar([row["batch_size"] for row in line], [row["ratio"]["median"] for row in line],
                              yerr=list(zip(*errors, strict=True)), marker=_again(_MARKERS, index), capsize=3,
                              color=_colour(index), label=_label(summaries, name, way, temperature))  # fmt: skip
                sizes |= {row["batch_size"] for row in line}
                index += 1
    if index == 0:
        return None
    axes.axhline(1, color=_INK, linewidth=0.8, linestyle="--", alpha=0.6)
    axes.set(xlabel="batch size", ylabel="speed, x plain generate()")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes), map(str, sorted(sizes)))
    return _done(figure, axes)


def save_png(figure: Figure, path: Path) -> None:
    """Write a `figure` on white to `path`."""
    with whole_file(path) as temp:
        figure.savefig(temp, format="png", dpi=150, metadata={"Software": None})


def as_svg(figure: Figure, title: str) -> str:
    """A `figure` as an element of a page, in the page's own colours, with a `title` of its own on that page."""
    buffer = io.StringIO()
    # Text stays text, and ids are the same for the same picture.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Names of the drawing program's own namespaces are no addresses to be fetched, and nobody needs them here.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" style="max-width:{float(width) * 1.3:.0f}px" ', 1)


def _lines(summaries: Summaries, together: bool = True) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Rows by way and temperature, at the smallest batch size: of all tasks together, or one for each."""
    for name, summary in summaries.items():
        rows = [row for row in summary["rows"] if row["category"] is None]
        if together:
            rows = _joint(summary)
        else:
            rows = [row for row in rows if row["task"] != ALL_TASKS]
        for temperature, way in dict.fromkeys((row["temperature"], row["way"]) for row in rows):
            own = [row for row in rows if (row["temperature"], row["way"]) == (temperature, way)]
            least = min(row["batch_size"] for row in own)
            label = _label(summaries, name, way, temperature)
            if len({row["batch_size"] for row in rows}) > 1:
                label = f"{label}, batch {least}"
            yield label, [row for row in own if row["batch_size"] == least]


def _joint(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of all tasks together, or of the only one."""
    rows = [row for row in summary["rows"] if row["category"] is None]
    return [row for row in rows if row["task"] == ALL_TASKS] or rows


def _label(summaries: Summaries, name: str, way: str, temperature: float) -> str:
    return f"{f'{name}: ' if len(summaries) > 1 else ''}{way}, T {temperature:g}"


def _error(value: float, interval: Sequence[float] | None) -> tuple[float, float]:
    return (0.0, 0.0) if interval is None else (max(value - interval[0], 0.0), max(interval[1] - value, 0.0))


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _again(marks: Sequence[str], index: int) -> str:
    """The mark of line `index`: the next one each time that the colours begin anew."""
    return marks[index // len(_COLOURS) % len(marks)]


def _figure(width: float = _SIZE[0]) -> tuple[Figure, Any]:
    # The object interface: no global state, no display.
    figure = Figure(figsize=(width, _SIZE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _done(figure: Figure, axes: Any) -> Figure:
    axes.grid(alpha=0.25, color=_INK)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    # Outside: inside it would lie on what it explains.
    labels = axes.get_legend_handles_labels()[1]
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * len(labels))
    figure.legend(loc="outside lower left", fontsize="small", framealpha=0, labelcolor=_INK)
    return figure
