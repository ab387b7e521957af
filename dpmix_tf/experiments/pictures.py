"""Pictures of an experiment, as PNG; told apart without colour."""

import io
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from dpmix_tf.experiments.study import exact
from dpmix_tf.plotting import pyplot

# Okabe and Ito's colours, which colour-blind people can tell apart; with a marker and a
# dash each they are told apart in black and white too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")

# name -> x, y, error of y or None, each [n]
Lines = Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float] | None]]


def draw_lines(
    lines: Lines, *, x: str, y: str, log_x: bool = False, title: str = ""
) -> bytes:
    """Draws one line an arm, with error bars.

    Args:
      lines: by name, in the legend's order.
      x: the axis's name and unit.
      y: the axis's name and unit.
      log_x: spread x by ratios; its values are the ticks.
      title: above it.

    Returns:
      A PNG file.
    """
    figure, axis = pyplot().subplots(figsize=(5.4, 3.9), layout="constrained")
    styles = zip(
        itertools.cycle(_COLOURS),
        itertools.cycle(_MARKERS),
        itertools.cycle(_DASHES),
        strict=False,
    )
    count = len(lines)
    places = sorted({place for places, *_ in lines.values() for place in places})
    spread = np.ptp(np.log(places) if log_x else places) if len(places) > 1 else 1.0
    for index, ((name, (xs, ys, errors)), (colour, marker, dash)) in enumerate(
        zip(lines.items(), styles, strict=False)
    ):
        # Beside each other, so that error bars can be read.
        shift = (index - (count - 1) / 2) * 0.008 * spread if errors else 0.0
        at = np.asarray(xs, float)
        axis.errorbar(
            at * np.exp(shift) if log_x else at + shift,
            ys,
            yerr=errors,
            label=name,
            color=colour,
            marker=marker,
            linestyle=dash,
            markersize=5,
            capsize=3,
            linewidth=1.3,
        )
    if log_x:
        axis.set_xscale("log")
        axis.set_xticks(places, [exact(place) for place in places])
        axis.minorticks_off()
    axis.set(xlabel=x, ylabel=y, title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    return _png(figure)


def draw_classes(rows: Mapping[str, Sequence[float]], classes: Sequence[str]) -> bytes:
    """Draws accuracy in percent by class as a table of greys: arms down, classes over.

    Returns:
      A PNG file.
    """
    values = np.array(list(rows.values()), float)
    figure, axis = pyplot().subplots(
        figsize=(1.4 + 0.42 * len(classes), 1.1 + 0.36 * len(rows)),
        layout="constrained",
    )
    axis.imshow(values, cmap="Greys", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        axis.text(
            column,
            row,
            "-" if np.isnan(value) else f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if value > 55 else "black",
        )
    axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), list(rows))
    return _png(figure)


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib: equal data, equal files.
    figure.savefig(buffer, dpi=150, format="png", metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()
