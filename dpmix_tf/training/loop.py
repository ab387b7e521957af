"""The function that `fit` calls for each update, on one replica or several."""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dpmix_tf.errors import DivergedError


class TrainFunction:
    """Takes the next batch and makes one update from it.

    Args:
      train_step: a batch -> logs, the same on all replicas. One of them is "finite",
        whether the network still computes finite numbers.
      strategy: the strategy under which it runs.
      eagerly: whether to run it without a graph.
      diverged: makes the error to raise once the network's numbers are not finite.

    Attributes:
      input_seconds: time spent waiting for batches.
    """

    def __init__(
        self,
        train_step: Callable[[Any], dict[str, tf.Tensor]],
        strategy: tf.distribute.Strategy,
        *,
        eagerly: bool,
        diverged: Callable[[], DivergedError],
    ):
        self._train_step, self._strategy = train_step, strategy
        self._eagerly, self._diverged = eagerly, diverged
        self._traced: dict[Any, Callable] = {}
        self.input_seconds = 0.0

    def __call__(self, iterator: Any) -> dict[str, tf.Tensor]:
        """Makes the update; returns its logs but for "finite".

        Raises:
          DivergedError: the network no longer computes finite numbers.
        """
        started = time.perf_counter()
        batch = next(iterator)
        self.input_seconds += time.perf_counter() - started
        spec = iterator.element_spec  # batches of any size: traced once
        if spec not in self._traced:
            self._traced[spec] = (
                self._update
                if self._eagerly
                else tf.function(self._update, input_signature=(spec,), autograph=False)
            )
        logs = self._traced[spec](batch)
        if not logs.pop("finite"):
            raise self._diverged()
        return logs

    def _update(self, batch):
        logs = self._strategy.run(self._train_step, args=(batch,))
        # The logs are the same on all replicas.
        return {
            name: self._strategy.experimental_local_results(value)[0]
            for name, value in logs.items()
        }
