"""Wavelet scattering: fixed features that need no data, public or private."""

import math

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError

_BORDER = 2  # periods of an image's circular extension that a filter is summed over


@keras.saving.register_keras_serializable(package="dpmix_tf")
class Scattering(keras.layers.Layer):
    """Second-order wavelet scattering of images (Bruna and Mallat 2013), J = 2, L = 8.

    Averages of an image, of its moduli under 16 Morlet wavelets (2 scales, 8 angles),
    and of those of the first scale under the 8 of the second: 1 + 16 + 64 = 81
    channels an input channel, a quarter as high and wide. Constant filters, parameters
    and borders as in Kymatio (Andreux et al. 2020), so that its features compare.
    Differentially private linear classifiers on them are strong where no public data
    is at hand (Tramer and Boneh 2021).

    Input: float [n,H,W,C], H and W multiples of 4.
    Output: float32 [n,H/4,W/4,81*C], a channel's 81 features side by side.

    Raises:
      DPMixError: another height or width.
    """

    SCALES = 2
    ANGLES = 8
    FEATURES = 1 + SCALES * ANGLES + ANGLES * ANGLES

    def __init__(self, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.autocast = False  # a sum of 1,600 squares in bfloat16 means little

    def build(self, input_shape):
        """Makes the filters, as constants."""
        height, width = input_shape[1:3]
        if height is None or width is None or height % 4 or width % 4:
            raise DPMixError(
                "Scattering needs images whose height and width are multiples of 4; "
                f"received: {height}x{width}."
            )
        self._size = size = (_padded(height), _padded(width))
        wavelets = [
            [_morlet(size, scale, angle) for angle in range(self.ANGLES)]
            for scale in range(self.SCALES)
        ]
        # Purely real: a Morlet wavelet's real part is even and its imaginary part odd.
        fine, coarse = (
            np.stack([np.fft.fft2(one).real for one in row]).astype(np.float32)
            for row in wavelets
        )
        self._fine, self._coarse = fine, _folding(coarse)
        self._averages = {
            step: [_averaging(length, step) for length in size] for step in (1, 2)
        }
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        """(n, H/4, W/4, 81*C)."""
        batch, height, width, channels = input_shape
        return (batch, height // 4, width // 4, self.FEATURES * channels)

    def call(self, images):
        """See the class."""
        height, width, channels = images.shape[1:]
        x = tf.transpose(tf.cast(images, tf.float32), [0, 3, 1, 2])
        borders = [(size - length) // 2 for size, length in zip(
            self._size, (height, width), strict=True)]  # fmt: skip
        x = tf.pad(x, [[0, 0], [0, 0], *([b, b] for b in borders)], "REFLECT")
        x = tf.reshape(x, [-1, 1, *self._size])
        spectrum = tf.signal.fft2d(tf.complex(x, tf.zeros_like(x)))
        fine = _modulus(_filtered(spectrum, self._fine))
        coarse = _modulus(_folded(spectrum, self._coarse))
        spectrum = tf.signal.fft2d(tf.complex(fine, tf.zeros_like(fine)))
        second = _modulus(_folded(spectrum, self._coarse))
        features = tf.concat(
            [
                self._averaged(x, 1),
                self._averaged(fine, 1),
                self._averaged(coarse, 2),
                self._averaged(second, 2),
            ],
            axis=1,
        )
        shape = [channels * self.FEATURES, height // 4, width // 4]
        return tf.transpose(tf.reshape(features, [-1, *shape]), [0, 2, 3, 1])

    def _averaged(self, x: tf.Tensor, step: int) -> tf.Tensor:
        """[m,k,P/step,Q/step] -> [m,k,H/4,W/4]."""
        rows, columns = self._averages[step]
        return tf.einsum("ip,mkpq,jq->mkij", rows, x, columns)


def _filtered(spectrum: tf.Tensor, filters: np.ndarray) -> tf.Tensor:
    """Spectra [m,1,P,Q] times filters [8,P,Q] -> [m,8,P,Q]."""
    return spectrum * tf.complex(filters, np.zeros_like(filters))


def _folded(spectrum, filters):
    return tf.reduce_mean(
        tf.reshape(
            spectrum[:, :, None] * tf.complex(filters, np.zeros_like(filters)),
            [-1, spectrum.shape[1] * 8, 2, 20, 2, 20],
        ),
        [2, 4],
    )


def _modulus(spectrum):
    return tf.abs(tf.signal.ifft2d(spectrum))


def _folding(filters):
    return filters


def _padded(length: int) -> int:
    """With a border of four pixels, which the averages reach into, on either side."""
    return length + 8


def _gabor(
    size: tuple[int, int], sigma: float, angle: float, frequency: float, slant: float
) -> np.ndarray:
    """A plane wave under an oval Gaussian, summed over periods: complex [P,Q]."""
    total = np.zeros(size, complex)
    (p, q), sine, cosine = size, math.sin(angle), math.cos(angle)
    for row in range(-_BORDER, _BORDER + 1):
        for column in range(-_BORDER, _BORDER + 1):
            x, y = np.mgrid[row * p : (row + 1) * p, column * q : (column + 1) * q]
            along, across = x * cosine + y * sine, y * cosine - x * sine
            oval = along**2 + (slant * across) ** 2
            total += np.exp(-oval / (2 * sigma**2) + 1j * frequency * along)
    return total * slant / (2 * math.pi * sigma**2)


def _morlet(size: tuple[int, int], scale: int, angle: int) -> np.ndarray:
    """The wavelet of a scale (0, 1) and angle (0 to 7): complex [P,Q], of mean 0."""
    turn = (Scattering.ANGLES // 2 - 1 - angle) * math.pi / Scattering.ANGLES
    sigma, slant = 0.8 * 2**scale, 4.0 / Scattering.ANGLES
    wave = _gabor(size, sigma, turn, 0.75 * math.pi / 2**scale, slant)
    hill = _gabor(size, sigma, turn, 0.0, slant)
    return wave - wave.sum() / hill.sum() * hill


def _averaging(length: int, step: int) -> np.ndarray:
    """Gaussian averages at every fourth place inside the border.

    Args:
      length: P, of the padded image.
      step: pixels between the places where the signal is known, 1 or 2.

    Returns:
      float32 [length/4-2,length/step].
    """
    sigma = 0.8 * 2 ** (Scattering.SCALES - 1)
    places = np.arange(length)
    hill = sum(
        np.exp(-((places + period * length) ** 2) / (2 * sigma**2))
        for period in range(-_BORDER - 1, _BORDER + 1)
    )
    spectrum = np.fft.fft(hill).real / (sigma * math.sqrt(2 * math.pi))
    if step == 2:  # without the frequencies that the coarser grid cannot tell apart
        spectrum[length // 4 : length // 4 + length // 2] = 0.0
        spectrum = spectrum[: length // 2] + spectrum[length // 2 :]
    weights = np.fft.ifft(spectrum).real
    wanted = 4 // step * np.arange(1, length // 4 - 1)[:, np.newaxis]
    return weights[wanted - np.arange(length // step)].astype(np.float32)
