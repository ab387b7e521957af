"""A private head on features that need no data: wavelets, patches of dead leaves."""

import hashlib
import json
import math
from typing import Any

import keras
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.measured import versions
from dpmix_tf.models.patches import PatchBank
from dpmix_tf.models.scattering import Scattering
from dpmix_tf.models.whitening import (
    LogMagnitude,
    MirrorAverage,
    OpponentColours,
    Whitening,
)

_GROUP_NORM = "group_norm"
_FEATURES = ("scattering", "scattering+patches", "patches", _GROUP_NORM)
_HEADS = ("linear", "two_layer", "convolutional")
_WHITENED = 0.5  # half: a point of accuracy more on CIFAR-10 than whole
_FLOOR = 1e-3  # of wavelet coefficients, whose logarithms are taken
_HIDDEN = 64  # of the heads that have hidden layers, unless they are given


def scattering_network(
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    features: str = "scattering+patches",
    filters: int = 256,
    seed: int = 0,
    scales: int = 2,
    norm: float = 10.0,
    head: str | None = None,
    hidden: tuple[int, ...] = (),
    activation: str = "tanh",
    constants: str | None = None,
    name: str = "scattering",
) -> keras.Model:
    """Builds a classifier on fixed features, which need no data, public or private.

    Nothing before the head is trained, so it is computed once per view and outside the
    tape. Its constants are measured on seeded dead leaves when the network is built,
    which takes seconds to minutes, and are saved with it. The features are:

    - "scattering": wavelet scattering of opponent colours, averaged with that of the
      mirror image, on a logarithmic scale and half whitened (Tramer and Boneh 2021, who
      normalise it instead);
    - "patches": responses to patches of dead leaves (Coates, Ng and Lee 2011), averaged
      with those of the mirror image and half whitened;
    - "scattering+patches": both, at equal norms;
    - "group_norm": group-normalised scattering, as Tramer and Boneh have it (on
      CIFAR-10 67.0 % at epsilon = 3 with a linear head, 69.3 % with a small
      convolutional one); it has no constants to measure.

    Args:
      input_shape: (H, W, C), sides multiples of 4 up to 96; values in [0, 1].
      num_classes: number of logits.
      features: see above.
      filters: number of patches.
      seed: public; of the dead leaves and the patches.
      scales: of the scattering, 2 or 3.
      norm: root mean square of the norm of all features of an image of dead leaves; of
        "group_norm", the largest norm. The best clip norm and rate go with it.
      head: "linear"; "two_layer", with a hidden layer; or "convolutional", with 3x3
        convolutions. By default, convolutional if `hidden` is given, otherwise linear.
      hidden: widths of the hidden layers or convolutions; by default one of 64.
      activation: a Keras activation's name, for hidden layers.
      constants: what `constants_digest` must say; checked if given.
      name: the Keras model's name.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes]. They start
      at zero.

    Raises:
      DPMixError: an argument is not one of the above, the images' size is not
        supported, or the digest is another.
    """
    head = head or ("convolutional" if hidden else "linear")
    for argument, value, known in (
        ("features", features, _FEATURES),
        ("head", head, _HEADS),
    ):
        if value not in known:
            raise DPMixError(
                f"network.{argument} must be one of {', '.join(known)}; received: "
                f"{value!r}."
            )
    settings: dict[str, Any] = dict(
        features=features, filters=filters, seed=seed, scales=scales, norm=norm
    )
    if filters < 1 or seed < 0 or norm <= 0:
        raise DPMixError(
            "The network needs filters of 1 or more, a seed of 0 or more and a norm "
            f"above 0; received: filters={filters}, seed={seed}, norm={norm}."
        )
    found = constants_digest(**settings)
    if constants is not None and constants != found:
        raise DPMixError(
            f"The network's constants are to be {constants}; these settings, in this "
            f"version of dpmix_tf, make {found}. Use the version that the run began "
            "with, or start another run."
        )
    inputs = keras.Input(input_shape, name="images")
    blocks = _blocks(inputs, **settings)
    hidden = tuple(hidden) or (() if head == "linear" else (_HIDDEN,))
    x = _head(blocks, head, hidden, activation)
    logits = layers.Dense(
        num_classes, kernel_initializer="zeros", dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=name)


def constants_digest(
    *,
    features: str = "scattering+patches",
    filters: int = 256,
    seed: int = 0,
    scales: int = 2,
    norm: float = 10.0,
    **_,
) -> str | None:
    """Identifies the constants of `scattering_network`; None if it measures none.

    Constants differ from machine to machine by rounding. What makes them does not: the
    arguments, and the versions of the generator and of the layers.

    Args:
      features: of `scattering_network`, like the others.
      filters: only matters where there are patches.
      seed: of the dead leaves and the patches.
      scales: only matters where there is scattering.
      norm: of all features.

    Returns:
      SHA-256, in hexadecimal.
    """
    if features == _GROUP_NORM:
        return None
    recipe: dict[str, Any] = {"features": features, "seed": seed, "norm": float(norm)}
    recipe |= versions()
    if "patches" in features:
        recipe["filters"] = filters
    if "scattering" in features:
        recipe["scales"] = scales
    text = json.dumps(recipe, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _blocks(images, *, features, filters, seed, scales, norm) -> list[Any]:
    """The features of each kind, [n,h,w,c]."""
    if features == _GROUP_NORM:
        # About mean 0 and variance 1, so that brightness does not drown the features it
        # is grouped with: worth two points of accuracy on CIFAR-10.
        x = layers.Rescaling(4.0, offset=-2.0)(images)
        x = Scattering(scales)(x)
        # Groups of nine features (or seven of 217), without weights: every feature
        # reaches the head at a scale that noise does not drown.
        groups = x.shape[-1] // (9 if scales == 2 else 7)
        x = layers.GroupNormalization(groups, epsilon=1e-5, center=False, scale=False)(
            x
        )
        return [layers.Rescaling(norm / math.sqrt(math.prod(x.shape[1:])))(x)]
    kinds = features.split("+")
    inner: dict[str, list[keras.layers.Layer]] = {
        "scattering": [
            MirrorAverage([OpponentColours(seed=seed), Scattering(scales)]),
            LogMagnitude(_FLOOR),
        ],
        "patches": [MirrorAverage([PatchBank(filters, seed=seed)])],
    }
    own = norm / math.sqrt(len(kinds))
    return [
        Whitening(inner[kind], norm=own, power=_WHITENED, seed=seed)(images)
        for kind in kinds
    ]


def _head(blocks: list[Any], head: str, hidden: tuple[int, ...], activation: str):
    """All that is trained but the logits, on one tensor: the front's output."""
    flat = [layers.Flatten()(block) for block in blocks]
    x = flat[0] if len(flat) == 1 else layers.Concatenate()(flat)
    if head == "two_layer":
        for units in hidden:
            x = layers.Dense(units, activation=activation)(x)
    if head == "convolutional":
        shapes = [block.shape[1:] for block in blocks]
        x = BlockConvolutions(shapes, hidden, activation)(x)
    return x


@keras.saving.register_keras_serializable(package="dpmix_tf")
class BlockConvolutions(layers.Layer):
    """Convolves several blocks of features, each on its own grid.

    One tensor comes in, so that what precedes can be computed outside the gradient.

    Input: float [n,m], the blocks' features, flattened and side by side.
    Output: float [n,k], the convolutions' outputs likewise.

    Args:
      shapes: (h, w, c) of each block.
      hidden: channels of the 3x3 convolutions.
      activation: a Keras activation's name.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(self, shapes, hidden, activation, **kwargs):
        super().__init__(**kwargs)
        self.shapes = [tuple(shape) for shape in shapes]
        self.hidden, self.activation = tuple(hidden), activation
        self.convolutions = [
            [
                layers.Conv2D(
                    channels,
                    3,
                    padding="same",
                    activation=activation,
                    dtype=self.dtype_policy,
                )
                for channels in self.hidden
            ]
            for _ in self.shapes
        ]

    def build(self, input_shape):
        """Creates the convolutions' weights."""
        for (height, width, channels), stack in zip(
            self.shapes, self.convolutions, strict=True
        ):
            shape = (None, height, width, channels)
            for convolution in stack:
                convolution.build(shape)
                shape = convolution.compute_output_shape(shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        """(n, k)."""
        places = sum(height * width for height, width, _ in self.shapes)
        return (input_shape[0], places * self.hidden[-1])

    def call(self, features):
        """See the class."""
        sizes = [math.prod(shape) for shape in self.shapes]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        outputs = []
        for start, size, shape, stack in zip(
            starts, sizes, self.shapes, self.convolutions, strict=True
        ):
            x = keras.ops.reshape(features[:, start : start + size], (-1, *shape))
            for convolution in stack:
                x = convolution(x)
            outputs.append(keras.ops.reshape(x, (-1, math.prod(x.shape[1:]))))
        return keras.ops.concatenate(outputs, axis=1)

    def get_config(self):
        """The arguments."""
        return super().get_config() | {
            "shapes": self.shapes,
            "hidden": self.hidden,
            "activation": self.activation,
        }
