"""A small convolutional network, for digits and quick runs."""

import keras
from keras import layers


def convnet(
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    widths: tuple[int, ...] = (32, 64),
    activation: str = "relu",
    groups: int = 8,
    name: str = "convnet",
) -> keras.Model:
    """Builds [3x3 convolution, GroupNorm, activation, pool by 2] per width, and a head.

    Args:
      input_shape: (H, W, C); values in [0, 1]. H and W halve at every width.
      num_classes: number of logits.
      widths: output channels of each convolution, multiples of `groups`.
      activation: a Keras activation's name, see wide_resnet.
      groups: groups of the group normalisation (Wu and He 2018).
      name: the Keras model's name.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].
    """
    inputs = keras.Input(input_shape, name="images")
    x = layers.Rescaling(2.0, offset=-1.0)(inputs)
    for width in widths:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.GroupNormalization(groups)(x)
        x = layers.Activation(activation)(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    return keras.Model(
        inputs, layers.Dense(num_classes, dtype="float32", name="logits")(x), name=name
    )
