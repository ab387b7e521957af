"""Filters that smooth noisy gradients: post-processing, free of privacy cost."""

from typing import Any

import keras
from keras import ops

from dpmix_tf.errors import DPMixError


class _FilteringOptimizer(keras.optimizers.Optimizer):
    """Wraps another optimizer and exposes its learning rate and variables."""

    def __init__(self, inner: keras.optimizers.Optimizer, name: str):
        super().__init__(learning_rate=0.0, name=name)  # never used
        self.inner = inner

    def build(self, variables):
        """Makes the filter's and the inner optimizer's state, once."""
        if not self.built:
            super().build(variables)
            self.inner.build(variables)
            self._add_state(variables)

    def apply(self, grads, trainable_variables=None):
        """Filters the gradients and lets the inner optimizer apply them."""
        grads = list(grads)
        if trainable_variables is not None:
            self.build(list(trainable_variables))
        self._apply(grads, trainable_variables)
        self._iterations.assign_add(1)

    @property
    def variables(self):
        """The filter's and the inner optimizer's variables."""
        return self._variables + self.inner.variables

    @property
    def learning_rate(self):
        """The inner optimizer's learning rate."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner.learning_rate = value

    def finalize_variable_values(self, var_list):
        """Lets the inner optimizer do what it does after training."""
        self.inner.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """For Keras to save."""
        inner = keras.saving.serialize_keras_object(self.inner)
        return {"inner": inner, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None):
        """Makes the optimizer that `get_config` described."""
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner"), custom_objects=custom_objects
        )
        return cls(inner, **config)


@keras.saving.register_keras_serializable(package="dpmix_tf")
class LowPassOptimizer(_FilteringOptimizer):
    """Gives another optimizer low-pass filtered gradients (DOPPLER, Zhang et al. 2024).

    From one private update to the next, the noise is independent while the gradients
    are similar. A filter that passes slow changes keeps the gradients and averages the
    noise out. It is of first order:
    m_t = memory * m_{t-1} + (1 - memory) / 2 * (g_t + g_{t-1}),
    divided by the same filter's output for a constant 1, so that the first updates are
    not too short.

    Off by default. In a config: optimizer.low_pass = 0.9. The filter's state is part of
    every checkpoint.

    Args:
      inner: any Keras optimizer; its learning rate is this one's.
      memory: in [0, 1); 0 averages two updates.

    Raises:
      DPMixError: memory is out of range.
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        memory: float = 0.9,
        name: str = "low_pass",
    ):
        if not 0 <= memory < 1:
            raise DPMixError(f"memory must be in [0, 1), received: {memory}.")
        super().__init__(inner, name)
        self.memory = memory

    def _add_state(self, variables):
        self._filtered = self.add_optimizer_variables(variables, "filtered")
        self._last = self.add_optimizer_variables(variables, "last")
        self._weight = self.add_variable((), name="weight")

    def _apply(self, grads, trainable_variables):
        share = (1.0 - self.memory) / 2
        first = ops.cast(self.iterations == 0, "float32")
        # The filter's output for the input 0, 1, 1, 1, ...
        self._weight.assign(self.memory * self._weight + share * (2.0 - first))
        smooth = []
        for grad, filtered, last in zip(grads, self._filtered, self._last, strict=True):
            filtered.assign(self.memory * filtered + share * (grad + last))
            last.assign(grad)
            smooth.append(filtered / ops.cast(self._weight, filtered.dtype))
        self.inner.apply(smooth, trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """For Keras to save."""
        return super().get_config() | {"memory": self.memory}


@keras.saving.register_keras_serializable(package="dpmix_tf")
class KalmanOptimizer(_FilteringOptimizer):
    """Gives another optimizer Kalman-filtered gradients (DiSK, Zhang et al. 2025).

    The filter predicts that the gradient stays as it was, m_{t-1}, and corrects this
    by the noisy g_t: m_t = (1 - gain) * m_{t-1} + gain * g_t. So that the prediction
    does not lag behind, g_t is taken at the weights extrapolated by (1 - gain) / gain
    steps: x_t + (1 - gain) / gain * (x_t - x_{t-1}). The network holds these
    extrapolated weights, which are also the ones evaluated and averaged; the step is
    part of this optimizer's state, and so of every checkpoint. This is the paper's
    algorithm with gamma = (1 - kappa) / kappa, for which it takes one gradient per
    update.

    Off by default. In a config: optimizer.kalman_gain = 0.5.

    Args:
      inner: any Keras optimizer; its learning rate is this one's.
      gain: in (0, 1]; 1 is the inner optimizer alone. The paper's kappa.

    Raises:
      DPMixError: gain is out of range.
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        gain: float = 0.5,
        name: str = "kalman",
    ):
        if not 0 < gain <= 1:
            raise DPMixError(f"gain must be in (0, 1], received: {gain}.")
        super().__init__(inner, name)
        self.gain = gain

    def _add_state(self, variables):
        self._filtered = self.add_optimizer_variables(variables, "filtered")
        self._steps = self.add_optimizer_variables(variables, "steps")

    def _apply(self, grads, trainable_variables):
        variables = trainable_variables or self._trainable_variables
        gain = ops.where(self.iterations == 0, 1.0, self.gain)
        ahead = (1.0 - self.gain) / self.gain
        points = []
        for variable, step in zip(variables, self._steps, strict=True):
            points.append(ops.copy(variable - ahead * step))
            variable.assign(points[-1])
        for grad, filtered in zip(grads, self._filtered, strict=True):
            filtered.assign((1.0 - gain) * filtered + gain * grad)
        self.inner.apply([ops.copy(f) for f in self._filtered], trainable_variables)
        for variable, step, point in zip(variables, self._steps, points, strict=True):
            step.assign(variable - point)
            variable.assign(variable + ahead * step)

    def get_config(self) -> dict[str, Any]:
        """For Keras to save."""
        return super().get_config() | {"gain": self.gain}
