"""Accuracy of a network on a source of examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data import ExampleSource, ordered_batches
from dpmix_tf.pixels import as_float


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
