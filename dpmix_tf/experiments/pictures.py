"""Plots of an experiment, as PNG, readable without colour."""

import io
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from dpmix_tf.experiments.study import exact
from dpmix_tf.plotting import pyplot

# Okabe and Ito's colours, which colour-blind people can tell apart; different markers
# and dashes make lines distinct in black and white too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")

# name -> x, y, error of y or None, each [n]
Lines = Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float] | None]]


def draw_lines(
    lines: Lines, *, x: str, y: str, log_x: bool = False, title: str = ""
) -> bytes:
    """Draws one line per arm, with error bars.

    Args:
      lines: by name, in the legend's order.
      x: the name and unit of the x axis.
      y: the name and unit of the y axis.
      log_x: use a logarithmic x axis, with a tick at each value.
      title: shown above the plot.

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
        # Shifted sideways, so that error bars do not overlap.
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
    """Draws accuracy in percent as a grey-scale table, with a row per arm.

    Args:
      rows: arm -> accuracy for each class.
      classes: the names of the columns.

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
    # Leaves out matplotlib's version, so that equal data gives equal files.
    figure.savefig(buffer, dpi=150, format="png", metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()
