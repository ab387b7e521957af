"""Wavelet scattering: fixed features that need no data, public or private."""

import math

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError

_PERIODS = range(-2, 3)  # periods of the circular extension that filters sum over
_BORDER = 4  # pixels reflected on each side, as far as an average reaches
_LARGEST = 96  # pixels per side; the matrices grow with its fourth power


@keras.saving.register_keras_serializable(package="dpmix_tf")
class Scattering(keras.layers.Layer):
    """Second-order wavelet scattering of images (Bruna and Mallat 2013), J = 2, L = 8.

    Computes averages of an image, of its moduli under 16 Morlet wavelets (2 scales, 8
    angles), and of the moduli of the first scale under the 8 wavelets of the second:
    1 + 16 + 64 = 81 channels per input channel, a quarter as high and wide. The filters
    are constant; parameters and borders are as in Kymatio (Andreux et al. 2020), so
    that the features are comparable. Differentially private linear classifiers on them
    are strong where no public data is available (Tramer and Boneh 2021).

    Input: float [n,H,W,C], H and W multiples of 4 from 8 to 96.
    Output: float32 [n,H/4,W/4,81*C], with the 81 features of a channel side by side.

    Raises:
      DPMixError: the height or width is not supported.
    """

    SCALES = 2
    ANGLES = 8
    FEATURES = 1 + SCALES * ANGLES + ANGLES * ANGLES

    def __init__(self, *, dtype="float32", **kwargs):
        # Whatever the global policy: moduli are sums of many squares.
        super().__init__(dtype=dtype, **kwargs)

    def build(self, input_shape):
        """Creates the filters, as constants."""
        sides = input_shape[1:3]
        if any(not side or side % 4 or not 8 <= side <= _LARGEST for side in sides):
            raise DPMixError(
                "Scattering needs images whose height and width are multiples of 4 "
                f"from 8 to {_LARGEST}; received: {' x '.join(map(str, sides))}. "
                "Resize them with data.image_size."
            )
        padded = tuple(side + 2 * _BORDER for side in sides)
        borders = [_reflection(side) for side in sides]
        whole = [np.eye(side) for side in padded]
        fine, coarse = (
            np.stack([_morlet(padded, scale, turn) for turn in range(self.ANGLES)])
            for scale in range(self.SCALES)
        )
        self._fine = _WaveletModulus(fine, borders, step=1)
        self._coarse = _WaveletModulus(coarse, borders, step=2)
        self._coarse_of_fine = _WaveletModulus(coarse, whole, step=2)
        full, half = ([_averaging(side, step) for side in padded] for step in (1, 2))
        self._average_images = [
            np.float32(average @ border)
            for average, border in zip(full, borders, strict=True)
        ]
        self._average_full, self._average_half = full, half
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        """(n, H/4, W/4, 81*C)."""
        batch, height, width, channels = input_shape
        return (batch, height // 4, width // 4, self.FEATURES * channels)

    def call(self, images):
        """See the class."""
        height, width, channels = images.shape[1:]
        # Rows come first, so that an operation along them is one matrix product; then
        # all m channels of all images; then columns.
        x = tf.transpose(images, [1, 0, 3, 2])
        x = tf.reshape(x, [height, -1, width])
        fine = self._fine(x)
        coarse = self._coarse(x)
        second = self._coarse_of_fine(
            tf.reshape(fine, [fine.shape[0], -1, fine.shape[3]])
        )
        features = tf.concat(
            [
                _averaged(x, self._average_images, 1),
                _averaged(fine, self._average_full, self.ANGLES),
                _averaged(coarse, self._average_half, self.ANGLES),
                _averaged(second, self._average_half, self.ANGLES**2),
            ],
            axis=2,
        )
        shape = [height // 4, -1, channels * self.FEATURES, width // 4]
        return tf.transpose(tf.reshape(features, shape), [1, 0, 3, 2])


def scattering_network(
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    hidden: tuple[int, ...] = (),
    activation: str = "tanh",
    name: str = "scattering",
) -> keras.Model:
    """Builds a classifier on group-normalised scattering features.

    Nothing before the head is trained, so it is computed once per view and outside the
    tape (Tramer and Boneh 2021: on CIFAR-10 67.0 % at epsilon = 3 with a linear head,
    69.3 % with a small convolutional one).

    Args:
      input_shape: (H, W, C), sides multiples of 4 up to 96; values in [0, 1].
      num_classes: number of logits.
      hidden: channels of 3x3 convolutions before the linear layer; if empty, the
        classifier is a logistic regression.
      activation: a Keras activation's name, for the convolutions.
      name: the Keras model's name.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].
    """
    inputs = keras.Input(input_shape, name="images")
    # About mean 0 and variance 1, so that brightness does not drown the features it is
    # grouped with: worth two points of accuracy on CIFAR-10.
    x = keras.layers.Rescaling(4.0, offset=-2.0)(inputs)
    x = Scattering()(x)
    # Nine features per group, without weights: every feature reaches the head at a
    # scale that noise does not drown.
    x = keras.layers.GroupNormalization(
        x.shape[-1] // 9, epsilon=1e-5, center=False, scale=False
    )(x)
    for channels in hidden:
        x = keras.layers.Conv2D(channels, 3, padding="same", activation=activation)(x)
    logits = keras.layers.Dense(
        num_classes, kernel_initializer="zeros", dtype="float32", name="logits"
    )(keras.layers.Flatten()(x))
    return keras.Model(inputs, logits, name=name)


class _WaveletModulus:
    """|x * wavelet| for several wavelets, at every `step`-th pixel.

    After a Fourier transform along the rows, a convolution becomes, for each frequency,
    a convolution along the columns, which is a matrix. Processors are best at matrix
    products: on two cores this is several times as fast as fast Fourier transforms.

    Args:
      wavelets: complex [k,P,Q].
      borders: matrices that extend the rows, [P,H], and the columns, [Q,W].
      step: 1 or 2.
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


def _reflection(length: int) -> np.ndarray:
    """Extends a side by its mirror image: [length+2*_BORDER,length]."""
    return np.eye(length)[np.pad(np.arange(length), _BORDER, mode="reflect")]


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
    """The wavelet of a scale (0, 1) and angle (0 to 7): complex [P,Q], of mean 0."""
    turn = (Scattering.ANGLES // 2 - 1 - angle) * math.pi / Scattering.ANGLES
    sigma, slant = 0.8 * 2**scale, 4.0 / Scattering.ANGLES
    wave = _gabor(size, sigma, turn, 0.75 * math.pi / 2**scale, slant)
    hill = _gabor(size, sigma, turn, 0.0, slant)
    return wave - wave.sum() / hill.sum() * hill


def _averaging(length: int, step: int) -> np.ndarray:
    """Weights of Gaussian averages at every fourth position inside the border.

    Args:
      length: P, the length of the padded image.
      step: pixels between the positions where the signal is known, 1 or 2.

    Returns:
      float32 [length/4-2,length/step].
    """
    sigma = 0.8 * 2 ** (Scattering.SCALES - 1)
    places = np.arange(length)
    hill = sum(
        np.exp(-((places + period * length) ** 2) / (2 * sigma**2))
        for period in _PERIODS
    )
    spectrum = np.fft.fft(hill).real / (sigma * math.sqrt(2 * math.pi))
    if step == 2:  # drop the frequencies that the coarser grid cannot distinguish
        spectrum[length // 4 : length // 4 + length // 2] = 0.0
        spectrum = spectrum[: length // 2] + spectrum[length // 2 :]
    weights = np.fft.ifft(spectrum).real
    wanted = 4 // step * np.arange(1, length // 4 - 1)[:, np.newaxis]
    return weights[wanted - np.arange(length // step)].astype(np.float32)
