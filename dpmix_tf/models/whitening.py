"""Opponent colours, mirror averages and whitening: constants that need no data."""

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.models.measured import Chain, Measured, leaf_images

_BATCH = 50  # images whose features are measured at once
_OPPONENT = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
_OPPONENT /= np.linalg.norm(_OPPONENT, axis=1, keepdims=True)


@keras.saving.register_keras_serializable(package="dpmix_tf")
class OpponentColours(Measured):
    """Rotates colours so that channels are uncorrelated in natural images.

    RGB becomes (1,1,1)/sqrt(3), (1,0,-1)/sqrt(2) and (1,-2,1)/sqrt(6): lightness, and
    two chromas (Ruderman, Cronin and Chiao 1998 find such axes as principal components
    of cone responses). Grey stays grey. Other channels, about which nothing is known,
    are whitened, and scaled back to their mean variance, by the covariance of dead
    leaves with an independent lightness in each channel.

    Input: float [n,H,W,C].
    Output: float32 [n,H,W,C].

    Args:
      seed: of the leaves, where there are other numbers of channels than 1 and 3.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(self, *, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed

    def create(self, input_shape):
        """Creates the matrix, [C,C]."""
        channels = input_shape[-1]
        self.matrix = self.constant("matrix", (channels, channels))
        return [self.matrix]

    def measure(self, input_shape):
        """See the class."""
        channels = input_shape[-1]
        if channels == 1:
            return [np.eye(1)]
        if channels == 3:
            return [_OPPONENT.T]
        pixels = leaf_images((32, 32, channels), self.seed, 500) / 255.0
        covariance = np.cov(pixels.reshape(-1, channels).T)
        scale = np.sqrt(np.trace(covariance) / channels)
        return [scale * inverse_root(covariance, 1e-3)]

    def compute_output_shape(self, input_shape):
        """That of the input."""
        return tuple(input_shape)

    def call(self, images):
        """See the class."""
        return tf.tensordot(images, self.matrix, 1)

    def get_config(self):
        """The arguments."""
        return super().get_config() | {"seed": self.seed}


@keras.saving.register_keras_serializable(package="dpmix_tf")
class MirrorAverage(Chain):
    """Averages features of an image and of its mirror image: (f(x) + f(mirror x)) / 2.

    The features of an image and of its mirror image are then the same.

    Input: float [n,H,W,C].
    Output: as the last inner layer's.

    Args:
      layers: the inner layers, f.
      **kwargs: of keras.layers.Layer.
    """

    def call(self, images):
        """See the class."""
        return (self.run(images) + self.run(tf.reverse(images, [2]))) / 2


@keras.saving.register_keras_serializable(package="dpmix_tf")
class LogMagnitude(keras.layers.Layer):
    """log(|x| + floor): a change counts by its ratio, however strong the feature is.

    Wavelet coefficients span orders of magnitude, and a few strong edges would outweigh
    all the rest (Oyallon and Mallat 2015, "Deep roto-translation scattering", take
    logarithms too).

    Input: float [...].
    Output: float32 [...].

    Args:
      floor: above 0; smaller values count little.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(self, floor: float, *, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.floor = floor

    def compute_output_shape(self, input_shape):
        """That of the input."""
        return tuple(input_shape)

    def call(self, features):
        """See the class."""
        return tf.math.log(tf.abs(features) + self.floor)

    def get_config(self):
        """The arguments."""
        return super().get_config() | {"floor": self.floor}


@keras.saving.register_keras_serializable(package="dpmix_tf")
class Whitening(Chain):
    """Whitens the channels of features, by their statistics on dead leaves.

    At each position, z = (f - m) A with A = diag(1/sd) C^(-power/2): m and sd are the
    means and standard deviations of the n channels over all positions of all images,
    and C is their correlation matrix plus a ridge of `ridge` tr(C) / n. With a power of
    1, z is white; with 1/2, directions that vary more still weigh more, and those that
    hardly vary are not made as loud as the rest. A constant scales z so
    that the root mean square of an image's norm, over all positions and channels, is
    `norm`. None of this depends on data; the whitening of Coates, Ng and Lee (2011, "An
    analysis of single-layer networks") does.

    Input: float [n,H,W,C].
    Output: as the last inner layer's, float32.

    Args:
      layers: the inner layers, f.
      norm: above 0.
      power: 0 (standardised) to 1 (white).
      ridge: above 0; larger values amplify rare directions less.
      seed: of the images.
      images: how many; see `measured.leaf_images`.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(
        self,
        layers,
        *,
        norm: float = 10.0,
        power: float = 1.0,
        ridge: float = 1e-3,
        seed: int = 0,
        images: int | None = None,
        **kwargs,
    ):
        super().__init__(layers, **kwargs)
        self.norm, self.power, self.ridge = norm, power, ridge
        self.seed, self.images = seed, images

    def create(self, input_shape):
        """Builds the inner layers; creates the mean, [n], and the matrix, [n,n]."""
        super().create(input_shape)
        channels = super().compute_output_shape(input_shape)[-1]
        self.mean = self.constant("mean", (channels,))
        self.matrix = self.constant("matrix", (channels, channels))
        return [self.mean, self.matrix]

    def measure(self, input_shape):
        """See the class."""
        images = leaf_images(input_shape[1:], self.seed, self.images)
        channels = super().compute_output_shape(input_shape)[-1]
        total, squares = np.zeros(channels), np.zeros((channels, channels))
        count, origin = 0, None
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH].astype(np.float32) / 255
            features = np.asarray(self.run(tf.constant(batch)))
            positions = int(np.prod(features.shape[1:-1]))
            features = features.reshape(-1, channels)
            if origin is None:  # near the mean, so that float32 does
                origin = features.mean(axis=0)
            features = features - origin
            total += features.sum(axis=0, dtype=np.float64)
            squares += features.T @ features
            count += len(features)
        mean = total / count
        covariance = squares / count - np.outer(mean, mean)
        deviations = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        deviations = np.maximum(deviations, 1e-6 * deviations.max() + 1e-12)
        correlation = covariance / np.outer(deviations, deviations)
        root = inverse_root(correlation, self.ridge, self.power)
        matrix = root / deviations[:, np.newaxis]
        power = positions * np.sum((covariance @ matrix) * matrix)
        return [origin + mean, matrix * self.norm / np.sqrt(power)]

    def call(self, images):
        """See the class."""
        features = self.run(images) - self.mean
        shape = features.shape[1:]
        flat = tf.reshape(features, [-1, shape[-1]])
        return tf.reshape(tf.matmul(flat, self.matrix), [-1, *shape])

    def get_config(self):
        """The arguments."""
        return super().get_config() | {
            "norm": self.norm,
            "power": self.power,
            "ridge": self.ridge,
            "seed": self.seed,
            "images": self.images,
        }


def inverse_root(matrix: np.ndarray, ridge: float, power: float = 1.0) -> np.ndarray:
    """(C + ridge tr(C)/n I)^(-power/2) of a symmetric matrix, float64 [n,n]."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0.0) + ridge * np.trace(matrix) / len(matrix)
    return (vectors * values ** (-power / 2)) @ vectors.T
