"""Exponential moving average of the weights: post-processing, free of privacy cost."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


class ExponentialMovingAverage:
    """Averages weights over updates, with warm-up (De et al. 2022, appendix C.1).

    After update t (counted from 0), the average moves towards the weights by a fraction
    1 - min(decay, (1 + t) / (10 + t)).

    Args:
      variables: the weights to follow; the average starts at their values.
      decay: in [0, 1).
    """

    def __init__(self, variables: list[keras.Variable], decay: float):
        self._variables = variables
        self.decay = decay
        self.averages = [
            keras.Variable(
                variable.numpy(),
                trainable=False,
                aggregation="only_first_replica",  # all replicas compute the same
                name=f"average_{index}",
            )
            for index, variable in enumerate(variables)
        ]

    def follows(self, variables: list[keras.Variable]) -> bool:
        """Whether these are still the weights being averaged."""
        return [id(variable) for variable in variables] == [
            id(variable) for variable in self._variables
        ]

    def update(self, update: tf.Tensor) -> None:
        """Moves the averages towards the weights that the `update`-th update left."""
        step = tf.cast(update, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.averages, self._variables, strict=True):
            weight = tf.cast(1.0 - decay, average.dtype)
            average.assign_add(weight * (variable.value - average.value))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in the weights' place while the context lasts."""
        raw = [variable.numpy() for variable in self._variables]
        for average, variable in zip(self.averages, self._variables, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for value, variable in zip(raw, self._variables, strict=True):
                variable.assign(value)
