"""The card's plots as PNG files, for MLflow and `dvc plots`: forest, reliability, confusion matrices, training curve.

They show the same figures as the card. The same figures give the same bytes: one font that comes with matplotlib, no settings of the
user's, no date and no version in the file. Each file holds its text alternative as its description (PNG specification, 11.3.4.2).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.reporting.examples import visible_pieces
from pipeline.reporting.figures import smoothing_window, trailing_mean
from pipeline.reporting.forest import Forest, ForestRow
from pipeline.reporting.formats.metrics import ReliabilityBin
from pipeline.reporting.formats.training import Evaluated, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"
SETTINGS: Mapping[Any, Any] = {
    "font.family": FONT,
    "font.size": 9.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DOTS_PER_INCH = 120
LONGEST_NAME = 32
INK, SOFT, LINE, SERIES, SECOND = "#1c1e21", "#54595f", "#dcdee0", "#0a6aa1", "#a2511a"
# A verdict is a colour and a shape, as on the card: the marker and whether it is filled.
MARKS = {"pass": ("#00695c", "o", True), "fail": ("#b34700", "D", True), "open": ("#6a5a00", "s", False), "none": (SOFT, "o", False)}


@dataclass(frozen=True)
class Picture:
    """One plot: the name of its file, its size in inches, its text alternative, and what draws it."""

    name: str
    size: tuple[float, float]
    alt: str
    draw: Callable[["Figure"], None]

    @property
    def file(self) -> str:
        """The file's name in the folder."""
        return f"{self.name}.png"


def save_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write each picture into `folder`, which must exist."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        for picture in pictures:
            figure = Figure(
                figsize=picture.size, dpi=DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white"
            )
            FigureCanvasAgg(figure)
            picture.draw(figure)
            figure.savefig(folder / picture.file, format="png", metadata={"Software": None, "Description": picture.alt})


def forest_picture(name: str, title: str, plot: Forest) -> Picture:
    """Every row of the forest plot with its interval and limit, the verdict as colour and shape."""
    rows = sum(1 + len(part) for _, part in plot.parts)
    return Picture(name, (8.0, 1.2 + 0.26 * rows), f"{title}. {plot.alt}", lambda figure: _draw_forest(figure.subplots(), title, plot))


def reliability_picture(bins: Sequence[ReliabilityBin], alt: str) -> Picture:
    """The share of right answers at each confidence, with the band of a calibrated prompt."""
    return Picture("reliability", (5.0, 5.0), f"Reliability diagram. {alt}", lambda figure: _draw_reliability(figure.subplots(), bins))


def confusion_picture(labels: Sequence[str], matrices: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> Picture:
    """One confusion matrix or several side by side, each cell with its count and coloured by its share of the row."""
    side = 1.2 + 0.75 * len(labels)

    def draw(figure: "Figure") -> None:
        for axes, (title, matrix) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
            _draw_matrix(axes, title, labels, matrix)

    return Picture("confusion", (side * len(matrices) + 0.8, side + 0.6), _confusion_words(labels, matrices), draw)


def training_picture(
    steps: Sequence[Step], evaluations: Sequence[Evaluated], metrics: Sequence[str], best: int | None, alt: str
) -> Picture:
    """Loss of each step, smoothed, with the validation loss, above the validation `metrics`, of which the first selected the step."""

    def draw(figure: "Figure") -> None:
        panels: Any = figure.subplots(2 if evaluations else 1, 1, sharex=True, squeeze=False)
        _draw_loss(panels[0][0], steps, evaluations)
        if evaluations:
            _draw_metrics(panels[1][0], evaluations, metrics)
        for axes in panels[:, 0]:
            if best is not None:
                axes.axvline(best, color=INK, linestyle=":", linewidth=1.2)
        panels[-1][0].set_xlabel("optimiser step" + ("" if best is None else f" (dotted: step {best:,}, the one kept)"))

    return Picture("training", (8.0, 5.0 if evaluations else 3.0), f"Training curve. {alt}", draw)


def drawable(text: str) -> str:
    """The text in one line of at most 32 characters, with what cannot be seen or the font lacks as code points."""
    seen = "".join(piece.text for piece in visible_pieces(" ".join(text.split())))
    known = "".join(character if ord(character) in _characters() else f"U+{ord(character):04X}" for character in seen)
    return known if len(known) <= LONGEST_NAME else f"{known[: LONGEST_NAME - 1]}…"


@cache
def _characters() -> frozenset[int]:
    """The code points that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def _draw_forest(axes: "Axes", title: str, plot: Forest) -> None:
    places: list[tuple[float, str, bool]] = []
    height = 0
    for heading, rows in plot.parts:
        places.append((height, drawable(heading), True))
        for row in rows:
            height += 1
            _draw_row(axes, row, height)
            places.append((height, f"{drawable(row.label)}  n {row.estimate.n:,}", False))
        height += 1
    axes.set_yticks([place for place, _, _ in places], [text for _, text, _ in places])
    for label, (_, _, heading) in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("bold" if heading else "normal")
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_xlim(plot.scale[0], plot.scale[-1])
    axes.grid(axis="x", color=LINE)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("line: interval; dashed: limit; ● passes  ◆ fails  □ undecided  ○ no limit is set", color=SOFT)


def _draw_row(axes: "Axes", row: ForestRow, height: float) -> None:
    colour, marker, filled = MARKS[row.mark]
    estimate = row.estimate
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [height, height], color=colour, linewidth=1.6)
    if estimate.value is not None:
        axes.plot(
            [estimate.value],
            [height],
            marker=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markersize=6,
            clip_on=False,
        )
    if row.limit is not None:
        axes.plot(
            [row.limit, row.limit], [height - 0.45, height + 0.45], color=MARKS["fail"][0], linestyle="--", linewidth=1.4, clip_on=False
        )


def _draw_reliability(axes: "Axes", bins: Sequence[ReliabilityBin]) -> None:
    ordered = sorted(bins, key=lambda one: one.confidence)
    axes.fill_between(
        [one.confidence for one in ordered], [one.null_low for one in ordered], [one.null_high for one in ordered], color=SERIES, alpha=0.18
    )
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1.0)
    for one in ordered:
        if one.accuracy.value is None:
            continue
        if one.accuracy.low is not None and one.accuracy.high is not None:
            axes.plot([one.confidence, one.confidence], [one.accuracy.low, one.accuracy.high], color=SERIES, linewidth=1.6)
        within = one.null_low <= one.accuracy.value <= one.null_high
        colour, marker, _ = (SERIES, "o", True) if within else MARKS["fail"]
        axes.plot([one.confidence], [one.accuracy.value], marker=marker, color=colour, markersize=6, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.grid(color=LINE)
    axes.set_axisbelow(True)
    axes.set_title("Share of right answers at each confidence", loc="left", fontweight="bold")
    axes.set_xlabel("probability of the label that was answered\nband: a calibrated prompt; ● within, ◆ outside")


def _draw_matrix(axes: "Axes", title: str, labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    shares = [[count / sum(row) if sum(row) else 0.0 for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.4)  # so that black is legible on the darkest cell
    for actual, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            said = f"{count:,}\n{shares[actual][predicted]:.0%}" if sum(row) else "no rows"
            axes.text(predicted, actual, said, ha="center", va="center", color=INK, fontweight="bold" if actual == predicted else "normal")
    names = [drawable(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=30 if max(map(len, names)) * len(names) > 40 else 0)
    axes.set_yticks(range(len(labels)), names)
    axes.tick_params(length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("true label")
    axes.set_title(title, loc="left", fontweight="bold")


def _confusion_words(labels: Sequence[str], matrices: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> str:
    said = [
        f"{title}: "
        + ", ".join(
            f"{row[index]:,} of {sum(row):,} rows {label} right" for index, (label, row) in enumerate(zip(labels, matrix, strict=True))
        )
        for title, matrix in matrices
    ]
    return f"Confusion matrix. {'. '.join(said)}."


def _draw_loss(axes: "Axes", steps: Sequence[Step], evaluations: Sequence[Evaluated]) -> None:
    numbers, losses, window = [step.step for step in steps], [step.loss for step in steps], smoothing_window(steps)
    axes.plot(numbers, losses, color=SOFT, alpha=0.5, linewidth=0.8, label="loss of each step")
    axes.plot(numbers, trailing_mean(losses, window), color=SERIES, linewidth=1.8, label=f"smoothed over {window}")
    axes.plot(
        [one.step for one in evaluations], [one.loss for one in evaluations], "D", color=SECOND, markersize=5, label="validation loss"
    )
    _finish(axes, "Loss")


def _draw_metrics(axes: "Axes", evaluations: Sequence[Evaluated], metrics: Sequence[str]) -> None:
    for index, name in enumerate(metrics):
        values = [float(getattr(one, name)) for one in evaluations]
        style: dict[str, Any] = {"color": SECOND} if index == 0 else {"color": SOFT, "linestyle": "--", "markerfacecolor": "white"}
        selects = " (selects the step)" if index == 0 else ""
        axes.plot([one.step for one in evaluations], values, marker="o", markersize=4, label=f"{name.replace('_', ' ')}{selects}", **style)
    _finish(axes, "Validation metrics")


def _finish(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", color=LINE)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
