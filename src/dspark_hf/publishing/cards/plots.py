"""Two pictures for a card: how often slots are accepted, and whether the drafter knows it."""

from pathlib import Path
from typing import Any

from dspark_hf.files import whole_file

_SIZE = (6.0, 3.6)


def plot_acceptance(path: Path, evaluations: dict[str, dict[str, Any]]) -> bool:
    """One line an evaluation: how often a slot and all before it were accepted.

    Args:
        path (`Path`): The PNG to write.
        evaluations (`dict`): Evaluations by name; those without `accepted_per_slot` are left out.

    Returns:
        `bool`: Whether there was anything to draw.
    """
    lines = {name: one["accepted_per_slot"] for name, one in evaluations.items() if one.get("accepted_per_slot")}
    if not lines:
        return False
    figure, axes = _figure()
    for name, rates in lines.items():
        axes.plot(range(1, len(rates) + 1), rates, marker="o", label=name)
    axes.set(xlabel="slot", ylabel="accepted, with all before", ylim=(0, 1))
    axes.set_xticks(range(1, max(map(len, lines.values())) + 1))
    _save(figure, axes, path)
    return True


def plot_reliability(path: Path, evaluations: dict[str, dict[str, Any]]) -> bool:
    """Acceptance against confidence of slots whose predecessors were accepted, one colour an evaluation.

    Args:
        path (`Path`): The PNG to write.
        evaluations (`dict`): Evaluations by name; those without `reliability` are left out.

    Returns:
        `bool`: Whether there was anything to draw.
    """
    lines = {name: one["reliability"] for name, one in evaluations.items() if one.get("reliability")}
    if not lines:
        return False
    figure, axes = _figure()
    axes.plot((0, 1), (0, 1), linestyle="--", color="grey", linewidth=1)
    for name, bins in lines.items():
        label = f"{name} (ECE {100 * calibration_error(bins):.1f}%)"
        points = [one["confidence"] for one in bins], [one["accepted"] for one in bins]
        (line,) = axes.plot(*points, linewidth=1, alpha=0.4)
        # A bin of two slots says little: the area of a point is its share of them.
        most = max(one["count"] for one in bins)
        sizes = [4 + 80 * one["count"] / most for one in bins]
        axes.scatter(*points, s=sizes, color=line.get_color(), label=label, zorder=3, clip_on=False)
    axes.set(xlabel="confidence", ylabel="accepted", xlim=(0, 1), ylim=(0, 1))
    _save(figure, axes, path)
    return True


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: mean distance of confidence and acceptance over `bins`, weighted by count."""
    total = sum(one["count"] for one in bins)
    return sum(one["count"] * abs(one["confidence"] - one["accepted"]) for one in bins) / total if total else 0.0


def _figure():
    # The object interface: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure, axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with whole_file(path) as temp:
        # Without a date or version inside, the same figures give the same bytes: pushing them again uploads nothing.
        figure.savefig(temp, format="png", metadata={"Software": None})
