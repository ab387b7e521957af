"""ROC curves of attacks, drawn and described."""

from pathlib import Path
from typing import Any

import numpy as np

from dpmix_tf import plotting
from dpmix_tf.auditing.bounds import Roc
from dpmix_tf.files import write_atomic
from dpmix_tf.privacy.plan import round_up


def describe_roc(curve: Roc) -> dict[str, Any]:
    """Returns the AUC and true positive rates with their intervals, for JSON."""
    return {
        "auc": curve.auc,
        "auc_interval": curve.auc_interval,
        "true_positive_rates": {
            f"{rate:g}": {"rate": value, "interval": [low, high]}
            for rate, (value, low, high) in curve.at.items()
        },
    }


def draw_rocs(
    rocs: dict[str, Roc], path: str | Path, *, claimed: tuple[float, float] | None
) -> None:
    """Draws ROC curves on logarithmic axes, and the most that the claim allows.

    Args:
      rocs: attack -> Roc.
      path: PNG file to write.
      claimed: (epsilon, delta), whose line no true rate may exceed; None for no line.
    """
    pyplot = plotting.pyplot()
    figure, axes = pyplot.subplots(figsize=(5.5, 5))
    styles = ["-", "--", "-.", ":"]
    for (name, curve), style in zip(rocs.items(), styles, strict=False):
        axes.plot(
            curve.false_positive_rates,
            curve.true_positive_rates,
            style,
            drawstyle="steps-post",
            label=f"{name}: AUC {curve.auc:.3f}",
        )
    rates = np.geomspace(1e-5, 1, 200)
    axes.plot(rates, rates, color="grey", linewidth=0.8, label="guessing")
    if claimed is not None:
        epsilon, delta = claimed
        factor = np.exp(min(epsilon, 50.0))
        allowed = np.minimum(factor * rates + delta, 1 - (1 - rates - delta) / factor)
        axes.plot(
            rates,
            np.clip(allowed, 0, 1),
            color="black",
            linewidth=0.8,
            label=f"limit for epsilon = {round_up(epsilon)}",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(1e-4, 1),
        ylim=(1e-4, 1.05),
        xlabel="false positive rate",
        ylabel="true positive rate",
    )
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
    pyplot.close(figure)
