"""Wavelet scattering: fixed features that need no data, public or private."""

import math

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError

_PERIODS = range(-2, 3)  # periods of the circular extension that filters sum over
_LARGEST = 96  # pixels per side; the matrices grow with its fourth power


@keras.saving.register_keras_serializable(package="dpmix_tf")
class Scattering(keras.layers.Layer):
    """Second-order wavelet scattering of images (Bruna and Mallat 2013), L = 8.

    Computes averages of an image, of its moduli under Morlet wavelets of J scales and 8
    angles, and of the moduli of each scale under the wavelets of the coarser ones: with
    J = 2, 1 + 16 + 64 = 81 channels per input channel, with J = 3 217; a 2^J-th as
    high and wide. The filters are constant; parameters and borders are as in Kymatio
    (Andreux et al. 2020), so that the features are comparable. Differentially private
    linear classifiers on them are strong where no public data is available (Tramer and
    Boneh 2021).

    Input: float [n,H,W,C], H and W multiples of 4 from 2^(J+1) to 96.
    Output: float32 [n,h,w,F*C], with the F features of a channel side by side. For
    J = 2, h = H/4 and w = W/4; for J = 3, they are H/8 and W/8, rounded down.

    Args:
      scales: J, 2 or 3.
      **kwargs: of keras.layers.Layer.

    Raises:
      DPMixError: the height, the width or the number of scales is not supported.
    """

    ANGLES = 8

    def __init__(self, scales: int = 2, *, dtype="float32", **kwargs):
        # Whatever the global policy: moduli are sums of many squares.
        super().__init__(dtype=dtype, **kwargs)
        if scales not in (2, 3):
            raise DPMixError(f"Scattering has 2 or 3 scales; received: {scales}.")
        self.scales = scales

    @property
    def features(self) -> int:
        """Channels of the output per channel of the input."""
        pairs = self.scales * (self.scales - 1) // 2
        return 1 + self.scales * self.ANGLES + pairs * self.ANGLES**2

    def build(self, input_shape):
        """Creates the filters, as constants."""
        sides, smallest = input_shape[1:3], 2 ** (self.scales + 1)
        if any(not s or s % 4 or not smallest <= s <= _LARGEST for s in sides):
            raise DPMixError(
                "Scattering needs images whose height and width are multiples of 4 "
                f"from {smallest} to {_LARGEST}; received: "
                f"{' x '.join(map(str, sides))}. Resize them with data.image_size."
            )
        step = 2**self.scales
        padded = tuple(((side + step) // step + 1) * step for side in sides)
        borders = [_reflection(*lengths) for lengths in zip(sides, padded, strict=True)]
        # First and second order at each scale, from signals at each resolution.
        self._first, self._second = [], {}
        for scale in range(self.scales):
            wavelets = np.stack(
                [_morlet(padded, scale, turn) for turn in range(self.ANGLES)]
            )
            self._first.append(_WaveletModulus(wavelets, borders, step=2**scale))
            for finer in range(scale):
                folded = np.stack([_coarser(one, finer) for one in wavelets])
                whole = [np.eye(side // 2**finer) for side in padded]
                self._second[finer, scale] = _WaveletModulus(
                    folded, whole, step=2 ** (scale - finer)
                )
        self._averages = [
            [_averaging(side, self.scales, 2**scale) for side in padded]
            for scale in range(self.scales)
        ]
        self._average_images = [
            np.float32(average @ border)
            for average, border in zip(self._averages[0], borders, strict=True)
        ]
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        """(n, h, w, F*C); see the class."""
        batch, height, width, channels = input_shape
        step = 2**self.scales
        return (batch, height // step, width // step, self.features * channels)

    def call(self, images):
        """See the class."""
        height, width, channels = images.shape[1:]
        # Rows come first, so that an operation along them is one matrix product; then
        # all m channels of all images; then columns.
        x = tf.transpose(images, [1, 0, 3, 2])
        x = tf.reshape(x, [height, -1, width])
        firsts = [modulus(x) for modulus in self._first]
        orders = [_averaged(x, self._average_images, 1)]
        for first, averages in zip(firsts, self._averages, strict=True):
            orders.append(_averaged(first, averages, self.ANGLES))
        for finer, first in enumerate(firsts[:-1]):
            # All wavelets of all coarser scales, for each angle of the finer one.
            flat = tf.reshape(first, [first.shape[0], -1, first.shape[3]])
            seconds = [
                _averaged(
                    self._second[finer, scale](flat),
                    self._averages[scale],
                    self.ANGLES,
                )
                for scale in range(finer + 1, self.scales)
            ]
            second = tf.concat(seconds, axis=2)
            per_angle = self.ANGLES * second.shape[2]
            orders.append(
                tf.reshape(second, [second.shape[0], -1, per_angle, second.shape[3]])
            )
        features = tf.concat(orders, axis=2)
        rows, columns, count = features.shape[0], features.shape[3], features.shape[2]
        features = tf.reshape(features, [rows, -1, channels * count, columns])
        return tf.transpose(features, [1, 0, 3, 2])

    def get_config(self):
        """The arguments."""
        return super().get_config() | {"scales": self.scales}


class _WaveletModulus:
    """|x * wavelet| for several wavelets, at every `step`-th pixel.

    After a Fourier transform along the rows, a convolution becomes, for each frequency,
    a convolution along the columns, which is a matrix. Processors are best at matrix
    products: on two cores this is several times as fast as fast Fourier transforms.

    Args:
      wavelets: complex [k,P,Q].
      borders: matrices that extend the rows, [P,H], and the columns, [Q,W].
      step: pixels between the positions that are kept.
    """

    def __init__(self, wavelets: np.ndarray, borders: list[np.ndarray], *, step: int):
        count, rows, columns = wavelets.shape
        kept, kept_columns = rows // step, columns // step
        # Frequencies that the coarser grid cannot distinguish: [kept,step].
        aliases = np.arange(kept)[:, np.newaxis] + kept * np.arange(step)
        waves = np.exp(-2j * np.pi * aliases[..., np.newaxis] * np.arange(rows) / rows)
        waves = waves @ borders[0]
        self._forward = _stack(waves.real, waves.imag, axis=2).reshape(
            kept * step * 2, -1
        )
        spectra = np.fft.fft(wavelets, axis=1)[:, aliases] / step  # [k,kept,step,Q]
        shift = step * np.arange(kept_columns) - np.arange(columns)[:, np.newaxis]
        kernels = spectra[..., shift % columns]  # [k,kept,step,Q in,Q/step out]
        kernels = np.einsum("kfaio,iw->fawko", kernels, borders[1])
        real, imaginary = kernels.real, kernels.imag
        self._kernels = np.stack(
            [
                _stack(real, -imaginary, axis=2).reshape(
                    kept, -1, count * kept_columns
                ),
                _stack(imaginary, real, axis=2).reshape(kept, -1, count * kept_columns),
            ]
        )
        back = np.exp(2j * np.pi * np.outer(np.arange(kept), np.arange(kept)) / kept)
        back /= kept
        self._back = np.float32(
            np.block([[back.real, -back.imag], [back.imag, back.real]])
        )
        self._parts, self._shape = 2 * step, (kept, count, kept_columns)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [H,m,W] -> [P/step,m,k,Q/step]."""
        kept, count, columns = self._shape
        spectrum = tf.matmul(self._forward, tf.reshape(x, [x.shape[0], -1]))
        spectrum = tf.reshape(spectrum, [kept, self._parts, tf.shape(x)[1], x.shape[2]])
        spectrum = tf.transpose(spectrum, [0, 2, 1, 3])
        spectrum = tf.reshape(spectrum, [1, kept, -1, self._parts * x.shape[2]])
        filtered = tf.matmul(spectrum, self._kernels)  # real and imaginary parts
        signal = tf.matmul(self._back, tf.reshape(filtered, [2 * kept, -1]))
        real, imaginary = tf.split(signal, 2)
        modulus = tf.sqrt(tf.square(real) + tf.square(imaginary))
        return tf.reshape(modulus, [kept, -1, count, columns])


def _stack(real: np.ndarray, imaginary: np.ndarray, axis: int) -> np.ndarray:
    return np.stack([real, imaginary], axis).astype(np.float32)


def _averaged(x: tf.Tensor, averages: list[np.ndarray], count: int) -> tf.Tensor:
    """[P,m*count,Q] in any grouping -> [H/4,m,count,W/4]."""
    rows, columns = averages
    x = tf.matmul(rows, tf.reshape(x, [rows.shape[1], -1]))
    x = tf.matmul(tf.reshape(x, [-1, columns.shape[1]]), columns, transpose_b=True)
    return tf.reshape(x, [rows.shape[0], -1, count, columns.shape[0]])


def _reflection(length: int, padded: int) -> np.ndarray:
    """Extends a side by its mirror image at both ends: [padded,length]."""
    border = (padded - length) // 2
    return np.eye(length)[np.pad(np.arange(length), border, mode="reflect")]


def _gabor(
    size: tuple[int, int], sigma: float, angle: float, frequency: float, slant: float
) -> np.ndarray:
    """A plane wave under an oval Gaussian, summed over periods: complex [P,Q]."""
    total = np.zeros(size, complex)
    (p, q), sine, cosine = size, math.sin(angle), math.cos(angle)
    for row in _PERIODS:
        for column in _PERIODS:
            x, y = np.mgrid[row * p : (row + 1) * p, column * q : (column + 1) * q]
            along, across = x * cosine + y * sine, y * cosine - x * sine
            oval = along**2 + (slant * across) ** 2
            total += np.exp(-oval / (2 * sigma**2) + 1j * frequency * along)
    return total * slant / (2 * math.pi * sigma**2)


def _morlet(size: tuple[int, int], scale: int, angle: int) -> np.ndarray:
    """The wavelet of a scale (from 0) and angle (0 to 7): complex [P,Q], of mean 0."""
    angles = Scattering.ANGLES
    turn = (angles // 2 - 1 - angle) * math.pi / angles
    sigma, slant = 0.8 * 2**scale, 4.0 / angles
    wave = _gabor(size, sigma, turn, 0.75 * math.pi / 2**scale, slant)
    hill = _gabor(size, sigma, turn, 0.0, slant)
    return wave - wave.sum() / hill.sum() * hill


def _coarser(wavelet: np.ndarray, halvings: int) -> np.ndarray:
    """A wavelet on a grid with fewer points: complex [P,Q] -> [P/2^h,Q/2^h]."""
    spectrum = np.fft.fft2(wavelet)
    for axis in (0, 1):
        spectrum = _folded(spectrum, axis, 2**halvings)
    return np.fft.ifft2(spectrum)


def _folded(spectrum: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Drops the frequencies that a coarser grid cannot distinguish."""
    if step == 1:
        return spectrum
    half = spectrum.shape[axis] // step // 2
    low, _, high = np.split(spectrum, [half, -half], axis=axis)
    return np.concatenate([low, high], axis=axis)


def _averaging(length: int, scales: int, step: int) -> np.ndarray:
    """Weights of Gaussian averages at every 2^J-th position inside the border.

    Args:
      length: P, the length of the padded image.
      scales: J.
      step: pixels between the positions where the signal is known.

    Returns:
      float32 [length/2^J-2,length/step].
    """
    sigma = 0.8 * 2 ** (scales - 1)
    places = np.arange(length)
    hill = sum(
        np.exp(-((places + period * length) ** 2) / (2 * sigma**2))
        for period in _PERIODS
    )
    spectrum = np.fft.fft(hill).real / (sigma * math.sqrt(2 * math.pi))
    weights = np.fft.ifft(_folded(spectrum, 0, step)).real
    every = 2**scales
    wanted = every // step * np.arange(1, length // every - 1)[:, np.newaxis]
    return weights[wanted - np.arange(length // step)].astype(np.float32)
