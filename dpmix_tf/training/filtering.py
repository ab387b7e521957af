"""Noisy gradients made smoother: post-processing, free of privacy cost."""

from typing import Any

import keras
from keras import ops

from dpmix_tf.errors import DPMixError


@keras.saving.register_keras_serializable(package="dpmix_tf")
class LowPassOptimizer(keras.optimizers.Optimizer):
    """Gives another optimizer low-pass filtered gradients (DOPPLER, Zhang et al. 2024).

    The noise of private updates is independent from one to the next, gradients are
    alike; a filter that lets slow changes through keeps these and averages that. First
    order: m_t = memory * m_{t-1} + (1 - memory) / 2 * (g_t + g_{t-1}),
    divided by what the same filter makes of ones, so that the first updates are not too
    short.

    Off by default. In a config: optimizer.low_pass = 0.9. The filter's state is part of
    every checkpoint.

    Args:
      inner: any Keras optimizer; its learning rate is this one's.
      memory: in [0, 1); 0 averages two updates.

    Raises:
      DPMixError: memory out of range.
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        memory: float = 0.9,
        name: str = "low_pass",
        **unused,
    ):
        if not 0 <= memory < 1:
            raise DPMixError(f"memory must be in [0, 1), received: {memory}.")
        super().__init__(learning_rate=0.0, name=name)  # never used
        self.inner = inner
        self.memory = memory

    def build(self, variables):
        """Makes the filter's state, and the inner optimizer's."""
        if self.built:
            return
        super().build(variables)
        self._filtered = self.add_optimizer_variables(variables, "filtered")
        self._last = self.add_optimizer_variables(variables, "last")
        self._weight = self.add_variable((), name="weight")
        self.inner.build(variables)

    def apply(self, grads, trainable_variables=None):
        """Filters the gradients and lets the inner optimizer apply them."""
        grads = list(grads)
        if trainable_variables is not None:
            self.build(list(trainable_variables))
        share = (1.0 - self.memory) / 2
        first = ops.cast(self.iterations == 0, "float32")
        # What the filter makes of 0, 1, 1, 1, ...
        self._weight.assign(self.memory * self._weight + share * (2.0 - first))
        smooth = []
        for grad, filtered, last in zip(grads, self._filtered, self._last, strict=True):
            filtered.assign(self.memory * filtered + share * (grad + last))
            last.assign(grad)
            smooth.append(filtered / ops.cast(self._weight, filtered.dtype))
        self.inner.apply(smooth, trainable_variables)
        self._iterations.assign_add(1)

    @property
    def variables(self):
        """The filter's and the inner optimizer's."""
        return self._variables + self.inner.variables

    @property
    def learning_rate(self):
        """The inner optimizer's."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner.learning_rate = value

    def finalize_variable_values(self, var_list):
        """Lets the inner optimizer do what it does after training."""
        self.inner.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """For Keras to save."""
        return {
            "inner": keras.saving.serialize_keras_object(self.inner),
            "memory": self.memory,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None):
        """Makes it again."""
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner"), custom_objects=custom_objects
        )
        return cls(inner, **config)
