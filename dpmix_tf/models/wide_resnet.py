"""Wide residual networks with GroupNorm instead of BatchNorm."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="dpmix_tf")
class StandardizedConv2D(layers.Conv2D):
    """Conv2D with scaled weight standardisation (Brock et al. 2021, equation 1).

    Each output channel's weights are shifted to mean 0 and scaled to variance 1/fan-in,
    times a learnt gain. It acts on weights alone, so no example meets another.
    """

    def build(self, input_shape):
        """Adds one gain an output channel."""
        super().build(input_shape)
        self.gain = self.add_weight(
            name="gain", shape=(self.filters,), initializer="ones"
        )

    def convolution_op(self, inputs, kernel):
        """Convolves with the standardised kernel."""
        axes = (0, 1, 2)
        mean = ops.mean(kernel, axis=axes, keepdims=True)
        variance = ops.var(kernel, axis=axes, keepdims=True)
        fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
        scale = self.gain * ops.rsqrt(ops.maximum(variance * fan_in, 1e-4))
        return super().convolution_op(inputs, (kernel - mean) * scale)

    def save_own_variables(self, store):
        """Keras's convolutions save their kernel and bias alone."""
        layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        """See save_own_variables."""
        layers.Layer.load_own_variables(self, store)


def wide_resnet(
    *,
    depth: int = 16,
    width: int = 4,
    input_shape: tuple[int, int, int],
    num_classes: int,
    groups: int = 16,
    activation: str = "relu",
    norm_first: bool = True,
    weight_standardization: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a WRN-depth-width (Zagoruyko and Komodakis 2016), pre-activation.

    WRN-16-4 with 10 classes has 2,748,890 parameters. Norm and activation come before
    the convolution; group normalisation as in De et al. 2022.

    Args:
      depth: 6 * blocks + 4, such as 10, 16, 22, 40.
      width: multiplies the channels 16, 32, 64.
      input_shape: (H, W, C); values in [0, 1].
      num_classes: number of logits.
      groups: groups of the group normalisation; must divide 16.
      activation: Keras's name; bounded ones such as tanh keep gradients short
        (Papernot et al. 2021).
      norm_first: norm, then activation; or the other way round, so that what reaches
        the convolution is normalised.
      weight_standardization: use StandardizedConv2D (De et al. 2022).
      name: the Keras model's name, default wrn_<depth>_<width>.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, ...), received: {depth}.")
    convolution = StandardizedConv2D if weight_standardization else layers.Conv2D

    def convolve(x, channels, size, stride):
        return convolution(
            channels,
            size,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )(x)

    def activate(x):
        pair = layers.GroupNormalization(groups), layers.Activation(activation)
        for layer in pair if norm_first else reversed(pair):
            x = layer(x)
        return x

    inputs = keras.Input(input_shape, name="images")
    x = layers.Rescaling(2.0, offset=-1.0)(inputs)
    x = convolve(x, 16, 3, 1)
    for stage, channels in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            active = activate(x)
            widens = x.shape[-1] != channels
            shortcut = convolve(active, channels, 1, stride) if widens else x
            y = convolve(active, channels, 3, stride)
            y = convolve(activate(y), channels, 3, 1)
            x = layers.Add()([shortcut, y])
    x = layers.GlobalAveragePooling2D()(activate(x))
    outputs = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name or f"wrn_{depth}_{width}")
