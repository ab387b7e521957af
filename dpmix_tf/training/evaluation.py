"""How well a network does on a source of examples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy import special

from dpmix_tf.data import ExampleSource, PeopleSource, ordered_batches
from dpmix_tf.errors import DPMixError
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy.plan import EXAMPLE
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.encoding import encode_source
from dpmix_tf.training.metrics import summary_multi_label, summary_single_label
from dpmix_tf.training.roc import auroc


class Score(NamedTuple):
    """How well a network does on a source.

    Attributes:
      metric: "accuracy", the fraction of examples classified correctly; for several
        labels "auroc", the mean of the labels' areas under the ROC curve.
      overall: in [0, 1]; None if no label has positives and negatives.
      by_class: in [0, 1], one entry per class or label; None where there are no
        examples, or not of both kinds.
      logits: float32 [n,classes].
      labels: as the source has them.
    """

    metric: str
    overall: float | None
    by_class: list[float | None]
    logits: np.ndarray
    labels: np.ndarray


def make_predict(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a compiled function, images [n,H,W,C] -> logits [n,classes].

    It uses the network's current weights at every call.
    """
    return tf.function(
        lambda images: network(as_float(images), training=False), reduce_retracing=True
    )


class Evaluator:
    """Measures a model, encoding each source once if its views are encoded.

    Args:
      model: the model; it is measured with its current weights.
      batch_size: examples at a time.
      cache_dir: see encode_views; not used if the model's views are not encoded.
      cache_dtype: of the features.
    """

    def __init__(
        self,
        model: DPMixModel,
        *,
        batch_size: int,
        cache_dir: str | Path | None,
        cache_dtype: str,
    ):
        self._model, self._batch_size = model, batch_size
        self._cache_dir = cache_dir if model.views.encoded else None
        self._cache_dtype = cache_dtype
        whole = self._cache_dir is None
        self._predict = make_predict(model.network if whole else model.step.rest)
        self._sources: dict[int, tuple[ExampleSource, ExampleSource]] = {}

    def score(
        self,
        source: ExampleSource,
        *,
        before_batch: Callable[[], None] = lambda: None,
    ) -> Score:
        """Measures a source; `before_batch` may raise to stop."""
        return measure(
            self._predict,
            self._as_encoded(source, before_batch),
            batch_size=self._batch_size,
            before_batch=before_batch,
        )

    def _as_encoded(self, source, before_block) -> ExampleSource:
        """The source as the trained part of the network takes it."""
        if self._cache_dir is None:
            return source
        if id(source) not in self._sources:
            encoded = encode_source(
                self._model.network,
                source.examples,
                cache_dir=self._cache_dir,
                dtype=self._cache_dtype,
                before_block=before_block,
            )
            self._sources[id(source)] = source, encoded
        return self._sources[id(source)][1]


def measure(
    predict: Callable[[tf.Tensor], Any],
    source: ExampleSource,
    *,
    batch_size: int = 500,
    before_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Measures a network in this process alone, whatever the strategy.

    Args:
      predict: see make_predict.
      source: the examples, or people, whose images are; read once, in order.
      batch_size: examples at a time.
      before_batch: called before each batch; may raise to stop.
    """
    source = source.examples
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for images, labels in ordered_batches(source, batch_size):
        before_batch()
        parts.append((np.asarray(predict(images), np.float32), labels.numpy()))
    logits, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    if source.task == MULTI_LABEL:
        areas = [auroc(*columns) for columns in zip(logits.T, labels.T, strict=True)]
        values = [area and area.value for area in areas]
        known = [value for value in values if value is not None]
        overall = float(np.mean(known)) if known else None
        return Score("auroc", overall, values, logits, labels)
    classes = len(source.class_names)
    correct = np.argmax(logits, axis=-1) == labels
    seen = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[correct], minlength=classes)
    by_class = [r / s if s else None for r, s in zip(right, seen, strict=True)]
    return Score("accuracy", float(correct.mean()), by_class, logits, labels)


def record_scores(score: Score, source: ExampleSource, record: str) -> np.ndarray:
    """Returns how well each record was classified.

    Of an image it is 1 if its likeliest class is right, otherwise 0; with several
    labels, 1 less the Brier score: the mean, over the labels that are known, of
    (probability - label)^2. Of a person it is the mean over their images.

    Args:
      score: of all images of the source.
      source: images or people.
      record: "example" or "person".

    Returns:
      float64 [records], in [0, 1].

    Raises:
      DPMixError: it is not known whose the images are.
    """
    if score.metric == "accuracy":
        each = (np.argmax(score.logits, axis=-1) == score.labels).astype(np.float64)
    else:
        known = ~np.isnan(score.labels)
        missed = np.where(known, special.expit(score.logits) - score.labels, 0.0) ** 2
        each = 1.0 - missed.sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    if record == EXAMPLE:
        return each
    if isinstance(source, PeopleSource):
        return np.array(
            [each[source.images_of(i)].mean() for i in range(len(source))], np.float64
        )
    if source.people is None:
        raise DPMixError(
            "The training records are people, but it is not known whose each of these "
            "images is. Give a PeopleSource, or a table with data.person."
        )
    _, owners = np.unique(source.people, return_inverse=True)
    return np.bincount(owners, each) / np.bincount(owners)


def summary(score: Score, names: Sequence[str], people: Any = None) -> dict[str, Any]:
    """Returns all figures of a score with their intervals, see metrics; JSON-able.

    Args:
      score: of a source.
      names: its class names.
      people: [n], whose image each is, if known: the interval of several labels' mean
        then allows for it. All other intervals take images as independent.
    """
    if score.metric == "accuracy":
        return summary_single_label(score.logits, score.labels, names)
    return summary_multi_label(score.logits, score.labels, names, people=people)
