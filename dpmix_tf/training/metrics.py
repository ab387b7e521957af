"""Figures about predictions: for one label or several, subgroups and people.

Pure functions of arrays, computed without noise: figures of private examples are not
covered by any guarantee. All intervals are at 95 %. What they return is JSON-able; a
figure that the data cannot give, such as the AUROC of a label that nobody has, is None.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from dpmix_tf.errors import DPMixError
from dpmix_tf.training.roc import (
    Interval,
    auroc,
    average_precision,
    weighted_auroc,
    wilson,
)

__all__ = [
    "Interval",
    "auroc",
    "average_precision",
    "by_subgroup",
    "per_person",
    "summary_multi_label",
    "summary_single_label",
]

_CALIBRATION_BINS = 15


def summary_multi_label(
    logits: Any,
    labels: Any,
    names: Sequence[str],
    *,
    people: Any = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Returns the figures of a classifier of several labels, as JSON-able values.

    Args:
      logits: float [n,L], finite.
      labels: float [n,L] of 0, 1 or NaN for unknown.
      names: of the L labels.
      people: [n], whose image each is; the bootstrap then draws people instead of
        images, since images of one person are not independent.
      seed: of the bootstrap.
      resamples: of the bootstrap.

    Returns:
      "examples"; "mean_auroc": over the labels that have both classes, "labels" of
      them, "value" with a percentile bootstrap's "low" and "high", or None;
      "by_label": of each name "auroc" (an Interval's fields, or None),
      "average_precision", "prevalence" and "accuracy" where probabilities above 0.5
      count as positive; None where nothing is known.

    Raises:
      DPMixError: there are no examples, or the arguments are not as described.
    """
    logits = _check_logits(logits, names)
    labels = np.asarray(labels, np.float64)
    if labels.shape != logits.shape:
        raise DPMixError(
            f"labels must have the logits' shape {logits.shape}, received: "
            f"{labels.shape}."
        )
    by_label: dict[str, dict[str, Any]] = {}
    for name, scores, known in zip(names, logits.T, labels.T, strict=True):
        found = auroc(scores, known)
        right = (scores > 0) == (known == 1)
        by_label[name] = {
            "auroc": None if found is None else found._asdict(),
            "average_precision": average_precision(scores, known),
            "prevalence": _mean(known[~np.isnan(known)]),
            "accuracy": _mean(right[~np.isnan(known)]),
        }
    values = [one["auroc"]["value"] for one in by_label.values() if one["auroc"]]
    mean_auroc = None
    if values:
        low, high = _bootstrap(logits, labels, people, seed, resamples)
        mean_auroc = {
            "value": float(np.mean(values)),
            "low": low,
            "high": high,
            "labels": len(values),
        }
    return {"examples": len(logits), "mean_auroc": mean_auroc, "by_label": by_label}


def _bootstrap(
    logits: np.ndarray, labels: np.ndarray, people: Any, seed: int, resamples: int
) -> tuple[float, float]:
    """The percentiles of the mean AUROC; labels with one class are left out of it.

    A resample is a number of times that each example counts, so that scores are
    sorted only once.
    """
    owner = np.arange(len(logits)) if people is None else _owners(people, len(logits))
    random, count = np.random.default_rng(seed), int(owner.max()) + 1
    if count == 1:  # nothing to estimate a spread from
        return 0.0, 1.0
    prepared = []
    for scores, known in zip(logits.T, labels.T, strict=True):
        rows = np.flatnonzero(~np.isnan(known))
        if not 0 < known[rows].sum() < rows.size:
            continue
        rows = rows[np.argsort(scores[rows])]
        _, starts = np.unique(scores[rows], return_index=True)
        prepared.append((owner[rows], known[rows], starts))
    means = []
    for _ in range(resamples):
        times = np.bincount(random.integers(count, size=count), minlength=count)
        areas = [weighted_auroc(times[who], *rest) for who, *rest in prepared]
        means.append(np.mean([area for area in areas if area is not None] or [np.nan]))
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def summary_single_label(
    logits: Any, labels: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Returns the figures of a classifier into one of several classes, JSON-able.

    Args:
      logits: float [n,classes], finite.
      labels: integers [n] in [0, classes).
      names: of the classes.

    Returns:
      "examples"; "accuracy": "value" with Wilson's "low" and "high";
      "balanced_accuracy": the mean of the accuracies by class; "calibration_error":
      the mean difference between confidence and accuracy over 15 bins of equal mass
      (Guo et al. 2017; Nixon et al. 2019), equal confidences in one bin; "by_class": of
      each name its "examples" and "accuracy", None where it has none.

    Raises:
      DPMixError: there are no examples, or the arguments are not as described.
    """
    logits = _check_logits(logits, names)
    labels = _check_classes(labels, len(logits), len(names))
    correct = np.argmax(logits, axis=1) == labels
    by_class = {
        name: {
            "examples": int(np.sum(labels == number)),
            "accuracy": _mean(correct[labels == number]),
        }
        for number, name in enumerate(names)
    }
    confidence = special.softmax(logits, axis=1).max(axis=1)
    inner = np.linspace(0, 1, _CALIBRATION_BINS + 1)[1:-1]
    bins = np.searchsorted(np.quantile(confidence, inner), confidence)
    gaps = np.bincount(bins, weights=confidence - correct)
    accuracies = [one["accuracy"] for one in by_class.values()]
    return {
        "examples": len(logits),
        "accuracy": wilson(correct.sum(), len(logits)),
        "balanced_accuracy": _mean([one for one in accuracies if one is not None]),
        "calibration_error": float(np.abs(gaps).sum() / len(logits)),
        "by_class": by_class,
    }


def by_subgroup(
    logits: Any,
    labels: Any,
    groups: Any,
    names: Sequence[str],
    multi_label: bool,
    *,
    people: Any = None,
    at_least: int = 10,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Returns the summary's headline figures for each group of examples, JSON-able.

    Args:
      logits: see summary_multi_label or summary_single_label.
      labels: see there.
      groups: [n], the name of each example's group.
      names: of labels or classes.
      multi_label: whether labels are those of summary_multi_label.
      people: [n], see summary_multi_label; group sizes are then numbers of people.
      at_least: groups smaller than this are pooled into "other", so that figures tell
        nothing of anybody alone; if "other" would be too small itself, the smallest
        remaining group joins it.
      seed: see summary_multi_label.
      resamples: see summary_multi_label.

    Returns:
      "groups": of each name its "size" and the summary without its parts by label or
      class; "smallest_group": "name" and "size".

    Raises:
      DPMixError: there are no examples, or the arguments are not as described.
    """
    logits, labels = _check_logits(logits, names), np.asarray(labels)
    owner = np.arange(len(logits)) if people is None else _owners(people, len(logits))
    groups = _pooled(_check_length("groups", groups, len(logits)), owner, at_least)
    _check_length("labels", labels, len(logits))
    found = {}
    for name in np.unique(groups):
        inside = groups == name
        figures = (
            summary_multi_label(
                logits[inside],
                labels[inside],
                names,
                people=owner[inside],
                seed=seed,
                resamples=resamples,
            )
            if multi_label
            else summary_single_label(logits[inside], labels[inside], names)
        )
        size = {"size": len(np.unique(owner[inside]))}
        parts = "by_label", "by_class"
        found[str(name)] = size | {k: v for k, v in figures.items() if k not in parts}
    smallest = min(found, key=lambda name: found[name]["size"])
    return {
        "groups": found,
        "smallest_group": {"name": smallest, "size": found[smallest]["size"]},
    }


def _pooled(groups: np.ndarray, owner: np.ndarray, at_least: int) -> np.ndarray:
    """The groups' names [n], small ones replaced by "other"."""
    groups = groups.astype(object).astype(str)
    sizes = {name: len(set(owner[groups == name])) for name in np.unique(groups)}
    small: list[str] = []
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        within = len(set(owner[np.isin(groups, [*small, "other"])]))
        if sizes[name] >= at_least and not (small and within < at_least):
            break
        small.append(name)
    return np.where(np.isin(groups, small), "other", groups)


def per_person(
    logits: Any, labels: Any, people: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins the images of each person.

    Args:
      logits: float [n,c], finite.
      labels: integers [n], each image's class; or float [n,c] of 0, 1 or NaN.
      people: [n], whose image each is.

    Returns:
      logits: float64 [p,c], the mean over each person's images.
      labels: int64 [p], the person's commonest class, the lowest of equally common
        ones; or float64 [p,c], 1 for a finding in any image, else 0, NaN if the label
        is unknown in all of them.
      people: [p], sorted.

    Raises:
      DPMixError: there are no examples, or the arguments are not as described.
    """
    logits = _check_logits(logits)
    owner = _owners(people, len(logits))
    names, first = np.unique(np.asarray(people), return_index=True)
    means = np.zeros((len(first), logits.shape[1]))
    np.add.at(means, owner, logits)
    means /= np.bincount(owner)[:, None]
    labels = np.asarray(labels)
    if labels.ndim == 1:
        labels = _check_classes(labels, len(logits), logits.shape[1])
        counts = np.zeros(means.shape, np.int64)
        np.add.at(counts, (owner, labels), 1)
        return means, counts.argmax(axis=1), names
    if labels.shape != logits.shape:
        raise DPMixError(
            f"labels must be [n] or of the logits' shape {logits.shape}, received: "
            f"{labels.shape}."
        )
    findings = np.full(means.shape, np.nan)
    np.fmax.at(findings, owner, labels.astype(np.float64))  # ignores NaN
    return means, findings, names


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _owners(people: Any, examples: int) -> np.ndarray:
    """Numbers people from 0: int64 [n]."""
    people = _check_length("people", people, examples)
    return np.unique(people, return_inverse=True)[1].astype(np.int64)


def _check_length(name: str, values: Any, examples: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape[:1] != (examples,):
        raise DPMixError(
            f"{name} must have one entry for each of {examples} examples, received "
            f"shape {values.shape}."
        )
    return values


def _check_logits(logits: Any, names: Sequence[str] | None = None) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size:
        raise DPMixError(
            "logits must be [examples,labels] with at least one of each, received "
            f"shape {logits.shape}. Check that the data has examples in this part."
        )
    if names is not None and len(set(names)) != logits.shape[1]:
        raise DPMixError(
            f"names must be {logits.shape[1]} different ones, one per column of the "
            f"logits, received: {list(names)}."
        )
    if not np.all(np.isfinite(logits)):
        raise DPMixError(
            "logits must be finite, received NaN or infinity: the network no longer "
            "computes finite numbers. Use an earlier checkpoint."
        )
    return logits


def _check_classes(labels: Any, examples: int, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    good = labels.shape == (examples,) and np.issubdtype(labels.dtype, np.integer)
    if not good or labels.min() < 0 or labels.max() >= classes:
        raise DPMixError(
            f"labels must be {examples} integers in [0, {classes}), received shape "
            f"{labels.shape} of {labels.dtype}."
        )
    return labels.astype(np.int64)
