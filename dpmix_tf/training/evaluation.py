"""Accuracy of a network on a source of examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data import ExampleSource, ordered_batches
from dpmix_tf.pixels import as_float
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.encoding import encode_source


class Accuracy(NamedTuple):
    """The fraction of a source's examples that a network classifies correctly.

    Attributes:
      overall: in [0, 1].
      by_class: in [0, 1], one entry per label; None for a class without examples.
    """

    overall: float
    by_class: list[float | None]


def make_predict(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a compiled function, images [n,H,W,C] -> logits [n,classes].

    It uses the network's current weights at every call.
    """
    return tf.function(
        lambda images: network(as_float(images), training=False), reduce_retracing=True
    )


class Evaluator:
    """Measures a model's accuracy, encoding each source once if its views are encoded.

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

    def accuracy(
        self,
        source: ExampleSource,
        *,
        before_batch: Callable[[], None] = lambda: None,
    ) -> Accuracy:
        """Measures accuracy on a source; `before_batch` may raise to stop."""
        return measure_accuracy(
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
                source,
                cache_dir=self._cache_dir,
                dtype=self._cache_dtype,
                before_block=before_block,
            )
            self._sources[id(source)] = source, encoded
        return self._sources[id(source)][1]


def measure_accuracy(
    predict: Callable[[tf.Tensor], Any],
    source: ExampleSource,
    *,
    batch_size: int = 500,
    before_batch: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Measures accuracy in this process alone, whatever the strategy.

    Args:
      predict: see make_predict.
      source: the examples, read once, in order.
      batch_size: examples at a time.
      before_batch: called before each batch; may raise to stop.
    """
    classes = len(source.class_names)
    right, seen = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for images, labels in ordered_batches(source, batch_size):
        before_batch()
        labels = labels.numpy()
        correct = np.argmax(predict(images), axis=-1) == labels
        seen += np.bincount(labels, minlength=classes)
        right += np.bincount(labels[correct], minlength=classes)
    by_class = [r / s if s else None for r, s in zip(right, seen, strict=True)]
    return Accuracy(float(right.sum() / max(seen.sum(), 1)), by_class)
