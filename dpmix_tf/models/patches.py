"""Whitened patches of dead leaves as convolution filters: features without data."""

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.models.measured import Measured, leaf_images
from dpmix_tf.models.whitening import inverse_root

_PATCHES = 60_000  # whose covariance is measured
_RIDGE = 0.1
_FLAT = 0.5  # patches with less than this fraction of the largest norm are no filters
_VARIANCE = 10 / 255**2
_GROUP = 128  # filters that are applied at once: their responses fit in memory


@keras.saving.register_keras_serializable(package="dpmix_tf")
class PatchBank(Measured):
    """Responses to random patches of dead leaves, thresholded and pooled.

    After Coates, Ng and Lee (2011, "An analysis of single-layer networks") and Coates
    and Ng (2011, "The importance of encoding versus training"), who find random patches
    almost as good as learnt dictionaries; here the patches are not the data's either.

    Each patch p of the input has its contrast normalised, (p - mean) / sqrt(variance +
    10), in units of 1/255, over all its pixels and channels. Filters are such patches
    of dead leaves, whitened, and scaled to norm 1; they are applied to the whitened
    patches of the input, at every position. Both sides of a response r are kept,
    max(r - t, 0) and max(-r - t, 0), and averaged over grid x grid overlapping squares.

    Input: float [n,H,W,C], at least size x size pixels.
    Output: float32 [n,grid,grid,2*filters]: the positive sides, then the negative ones.

    Args:
      filters: their number.
      size: side of a patch in pixels.
      grid: squares per side.
      threshold: t. Responses to dead leaves have a standard deviation of about 0.9: by
        default, each side passes a fifth of them.
      seed: of the leaves, and of the choice of patches.
      images: how many leaves; see `measured.leaf_images`.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(
        self,
        filters: int = 256,
        *,
        size: int = 6,
        grid: int = 4,
        threshold: float = 0.7,
        seed: int = 0,
        images: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.size, self.grid = filters, size, grid
        self.threshold, self.seed, self.images = threshold, seed, images

    def create(self, input_shape):
        """Creates the filters, [size*size*C,filters]; and the pooling's weights."""
        height, width, channels = input_shape[1:]
        rows, columns = (
            _pooling(side - self.size + 1, self.grid) for side in (height, width)
        )
        self._pool = np.kron(rows, columns).astype(np.float32)
        self.kernel = self.constant(
            "kernel", (self.size * self.size * channels, self.filters)
        )
        return [self.kernel]

    def measure(self, input_shape):
        """See the class."""
        images = leaf_images(input_shape[1:], self.seed, self.images)
        random = np.random.RandomState([self.seed % 2**32, self.seed // 2**32, 1])
        count = max(_PATCHES, 4 * self.filters)
        chosen = random.randint(len(images), size=count)
        highest = [side - self.size + 1 for side in input_shape[1:3]]
        top, left = (random.randint(most, size=count) for most in highest)
        within = np.arange(self.size)
        patches = images[
            chosen[:, np.newaxis, np.newaxis],
            top[:, np.newaxis, np.newaxis] + within[:, np.newaxis],
            left[:, np.newaxis, np.newaxis] + within,
        ]
        patches = patches.reshape(count, -1) / 255.0
        patches -= patches.mean(axis=1, keepdims=True)
        variance = np.square(patches).mean(axis=1, keepdims=True)
        patches /= np.sqrt(variance + _VARIANCE)
        root = inverse_root(patches.T @ patches / count, _RIDGE)
        largest = np.sqrt(patches.shape[1])
        lively = np.flatnonzero(np.linalg.norm(patches, axis=1) > _FLAT * largest)
        # In turns, if there are fewer than are wanted.
        filters = patches[np.resize(lively, self.filters)] @ root
        filters /= np.linalg.norm(filters, axis=1, keepdims=True)
        kernel = filters @ root
        return [(kernel - kernel.mean(axis=1, keepdims=True)).T]

    def compute_output_shape(self, input_shape):
        """(n, grid, grid, 2*filters)."""
        return (input_shape[0], self.grid, self.grid, 2 * self.filters)

    def call(self, images):
        """See the class."""
        height, width = images.shape[1:3]
        rows, columns = height - self.size + 1, width - self.size + 1
        x = tf.concat([images[:, :, i : i + columns] for i in range(self.size)], 3)
        x = tf.concat([x[:, i : i + rows] for i in range(self.size)], 3)
        x = tf.reshape(x, [-1, x.shape[3]])
        x -= tf.reduce_mean(x, 1, keepdims=True)
        x *= tf.math.rsqrt(tf.reduce_mean(tf.square(x), 1, keepdims=True) + _VARIANCE)
        sides: tuple[list, list] = ([], [])
        for start in range(0, self.filters, _GROUP):
            kernel = self.kernel[:, start : start + _GROUP]
            r = tf.matmul(x, kernel)
            r = tf.reshape(r, [-1, rows * columns, kernel.shape[1]])
            # max(r - t, 0) = max(r, t) - t, and averages of t are t: one pass each.
            t = self.threshold
            sides[0].append(tf.matmul(self._pool, tf.maximum(r, t)) - t)
            sides[1].append(-tf.matmul(self._pool, tf.minimum(r, -t)) - t)
        shape = [-1, self.grid, self.grid, 2 * self.filters]
        return tf.reshape(tf.concat([*sides[0], *sides[1]], 2), shape)

    def get_config(self):
        """The arguments."""
        return super().get_config() | {
            "filters": self.filters,
            "size": self.size,
            "grid": self.grid,
            "threshold": self.threshold,
            "seed": self.seed,
            "images": self.images,
        }


def _pooling(length: int, grid: int) -> np.ndarray:
    """Averages over `grid` stretches that overlap by a third: float64 [grid,length].

    For a grid of 4 on 27 places, they are 9 places long and begin at every sixth.
    """
    extent = max(1, round(1.5 * length / (grid + 0.5)))
    starts = np.linspace(0, length - extent, grid).round().astype(int)
    places = np.arange(length) - starts[:, np.newaxis]
    return ((places >= 0) & (places < extent)) / extent
