"""Losses by task: what a private step differentiates, and where labels are unknown."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """[n,classes], soft labels [n,classes] -> [n]."""
    # TensorFlow's fused cross-entropy is wrong for labels that sum to 0.
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1)


def binary_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean over all labels, in which one that is not known counts as 0.

    Dividing by the known ones alone would give a label more weight where fewer others
    are known.

    Args:
      logits: [n,labels].
      labels: [n,labels] in [0, 1]; NaN where not known, as in a blend with such.

    Returns:
      [n].
    """
    known = ~tf.math.is_nan(labels)
    each = tf.nn.sigmoid_cross_entropy_with_logits(
        tf.where(known, labels, tf.zeros_like(labels)), logits
    )
    return tf.reduce_mean(tf.where(known, each, tf.zeros_like(each)), axis=-1)


def mean_weight(class_weights: Sequence[float], labels: tf.Tensor) -> tf.Tensor:
    """A record's weight: the mean, over its views, of its labels' weights.

    Args:
      class_weights: one in [0, 1] per class.
      labels: soft, [c,K,classes], each of which sums to at most 1.

    Returns:
      [c], in [0, 1].
    """
    by_view = tf.linalg.matvec(labels, tf.constant(class_weights, labels.dtype))
    return tf.reduce_mean(by_view, axis=1)


@keras.saving.register_keras_serializable(package="dpmix_tf")
def shown_binary_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """`binary_cross_entropy` as Keras calls it."""
    return binary_cross_entropy(logits, labels)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    SINGLE_LABEL: cross_entropy,
    MULTI_LABEL: binary_cross_entropy,
}
