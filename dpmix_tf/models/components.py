"""Principal components of public features: what a private head need not learn."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError


@keras.saving.register_keras_serializable(package="dpmix_tf")
class PrincipalComponents(keras.layers.Layer):
    """Centres features and projects them on their largest principal components.

    All images share most of an encoder's features: their mean, which tells no class
    from another, makes most of each gradient's length, and so most of what clipping
    leaves. Mean and components come from public images, in `fit`. Where features come
    in groups, such as those of several depths of a network, each group is first scaled
    to the same root mean square norm on these images, so that none drowns the others.

    Input: float [n,d].
    Output: float32 [n,components].

    Args:
      components: 1 to d.
      groups: widths of the groups of features, whose sum is d; by default they are one.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(
        self,
        components: int,
        *,
        groups: Sequence[int] | None = None,
        dtype="float32",
        **kwargs,
    ):
        # Whatever the global policy: differences from a mean.
        super().__init__(dtype=dtype, **kwargs | {"trainable": False})
        self.components = components
        self.groups = None if groups is None else tuple(groups)

    def build(self, input_shape):
        """Creates the mean, [d], and the components, [d,components]."""
        width = input_shape[-1]
        settings = {"initializer": "zeros", "trainable": False}
        self.mean = self.add_weight(shape=(width,), name="mean", **settings)
        self.basis = self.add_weight(
            shape=(width, self.components), name="basis", **settings
        )

    def fit(self, features: np.ndarray) -> None:
        """Takes mean and components from features of public images.

        Args:
          features: float [m,d].

        Raises:
          DPMixError: there are no more images than components.
        """
        count, width = features.shape
        if not 1 <= self.components <= min(width, count - 1):
            raise DPMixError(
                f"network.components must be from 1 to {min(width, count - 1)}: the "
                f"encoder has {width} features, and there are {count} public images. "
                f"Received: {self.components}."
            )
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        scale = self._scale(centred)
        centred = centred * scale
        _, vectors = np.linalg.eigh(centred.T @ centred)
        basis = vectors[:, ::-1][:, : self.components]
        # Eigenvectors have no sign of their own: their largest entry is positive.
        largest = np.abs(basis).argmax(axis=0)
        basis = basis * np.sign(basis[largest, np.arange(self.components)])
        self.mean.assign(mean)
        self.basis.assign(scale[:, np.newaxis] * basis)

    def _scale(self, centred: np.ndarray) -> np.ndarray:
        """What each feature is multiplied with, [d]: one number for each group."""
        groups = self.groups or (centred.shape[1],)
        starts = np.cumsum((0, *groups))[:-1]
        energy = np.add.reduceat(np.mean(centred**2, axis=0), starts)
        varies = energy > 1e-12 * energy.mean()  # what never does says nothing
        factor = np.sqrt(energy.mean() / np.where(varies, energy, 1.0))
        return np.repeat(np.where(varies, factor, 0.0), groups)

    def call(self, features):
        """See the class."""
        return tf.matmul(tf.cast(features, tf.float32) - self.mean, self.basis)

    def compute_output_shape(self, input_shape):
        """(n, components)."""
        return (*input_shape[:-1], self.components)

    def get_config(self):
        """The arguments."""
        return super().get_config() | {
            "components": self.components,
            "groups": self.groups,
        }
