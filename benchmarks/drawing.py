"""Results as pictures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, OTHERS, INK = "#1b6ca8", "#b8b8b8", "#333333"


@dataclass(frozen=True)
class Panel:
    """Bars of one comparison: name to spread (see measuring.spread). Names that begin with `engine` are ours."""

    title: str
    unit: str
    bars: Mapping[str, Mapping[str, Any]]


def draw(path: Path, title: str, panels: Sequence[Panel], *, columns: int) -> None:
    """Write a PNG with a panel for each comparison; a bar ends at the median, its line goes from the smallest to the largest value."""
    rows = -(-len(panels) // columns)
    most_bars = max(len(panel.bars) for panel in panels)
    figure = Figure(figsize=(1.6 + 3.6 * columns, 0.8 + rows * (1.0 + 0.27 * most_bars)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, color=INK)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index < len(panels):
            same_names = index % columns > 0 and list(panels[index].bars) == list(panels[index - 1].bars)
            _draw_panel(axis, panels[index], names=not same_names)
        else:
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the writer's version in it the file changes only when the picture does.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_panel(axis: Any, panel: Panel, *, names: bool) -> None:
    labels, spreads = list(panel.bars), list(panel.bars.values())
    medians = [bar["median"] for bar in spreads]
    places = range(len(labels))
    below = [bar["median"] - bar["minimum"] for bar in spreads]
    above = [bar["maximum"] - bar["median"] for bar in spreads]
    axis.barh(
        places,
        medians,
        xerr=(below, above),
        color=[OURS if label.startswith("engine") else OTHERS for label in labels],
        ecolor=INK,
        capsize=2,
    )
    reach = max(bar["maximum"] for bar in spreads) or 1.0
    for place, bar in zip(places, spreads, strict=True):
        axis.text(bar["maximum"] + 0.02 * reach, place, f" {_short(bar['median'])}", va="center", fontsize=8, color=INK)
    axis.set_xlim(0, reach * 1.22)
    axis.set_yticks(list(places), labels if names else [""] * len(labels), fontsize=8)
    axis.invert_yaxis()
    axis.set_title(panel.title, fontsize=9, color=INK)
    axis.set_xlabel(panel.unit, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def with_spread(values: Mapping[str, Any]) -> str:
    """`median (smallest to largest)`."""
    return f"{_short(values['median'])} ({_short(values['minimum'])} to {_short(values['maximum'])})"


def goals_table(goals: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table of goals, reached or not."""
    rows = [
        [
            goal["goal"],
            f"{'at least' if goal['at_least'] else 'at most'} {goal['limit']:g}",
            f"{goal['value']:.3g}",
            "yes" if goal["reached"] else "**no**",
        ]
        for goal in goals
    ]
    return table(["goal", "limit", "found", "reached"], rows)


def _short(value: float) -> str:
    """Three significant digits without an exponent for usual sizes."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
