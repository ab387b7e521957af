"""Wide residual networks with GroupNorm instead of BatchNorm."""

import keras
from keras import layers, ops

# What comes before each convolution, with the test accuracy of DP-Mix_Self on CIFAR-10,
# WRN-16-4 at epsilon 8, in the re-run of the paper's experiments ("R+R: Towards
# Reliable and Generalizable DPML", ACSAC 2024).
ORDERS = {
    "activation_first": "activation, then norm: De et al.'s own; 78.49 %",
    "shortcut_norm_first": "the same, but norm, then activation in the shortcuts that "
    "widen, which have a norm of their own; convolutions have biases; 79.83 %",
    "norm_first": "norm, then activation: the textbook's; 69.17 %",
}

# Keras scales the deviation so that it holds after truncation.
_INITIAL = "lecun_normal"


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
    order: str = "activation_first",
    weight_standardization: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a WRN-depth-width (Zagoruyko and Komodakis 2016), pre-activation.

    With group normalisation as in De et al. 2022. WRN-16-4 with 10 classes has
    2,748,890 parameters, in the order "shortcut_norm_first" 2,751,562. Weights start
    truncated normal with standard deviation 1 / sqrt(fan_in), biases at zero.

    The order of norm and activation before each convolution decides the accuracy of
    private training: see the published figures of each in ORDERS.

    Args:
      depth: 6 * blocks + 4, such as 10, 16, 22, 40.
      width: multiplies the channels 16, 32, 64.
      input_shape: (H, W, C); values in [0, 1].
      num_classes: number of logits.
      groups: groups of the group normalisation; must divide 16.
      activation: Keras's name; bounded ones such as tanh keep gradients short
        (Papernot et al. 2021).
      order: one of ORDERS.
      weight_standardization: use StandardizedConv2D (De et al. 2022).
      name: the Keras model's name, default wrn_<depth>_<width>.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].

    Raises:
      ValueError: a depth or an order that does not exist.
    """
    if order not in ORDERS:
        raise ValueError(
            f"order must be one of {', '.join(ORDERS)}; received: {order}."
        )
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, ...), received: {depth}.")
    convolution = StandardizedConv2D if weight_standardization else layers.Conv2D
    own_shortcut = order == "shortcut_norm_first"

    def convolve(x, channels, size, stride):
        return convolution(
            channels,
            size,
            strides=stride,
            padding="same",
            use_bias=own_shortcut,
            kernel_initializer=_INITIAL,
        )(x)

    def activate(x, norm_first=order == "norm_first"):
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
            shortcut = x
            if x.shape[-1] != channels:
                source = activate(x, norm_first=True) if own_shortcut else active
                shortcut = convolve(source, channels, 1, stride)
            y = convolve(active, channels, 3, stride)
            y = convolve(activate(y), channels, 3, 1)
            x = layers.Add()([shortcut, y])
    x = layers.GlobalAveragePooling2D()(activate(x))
    outputs = layers.Dense(
        num_classes, kernel_initializer=_INITIAL, dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, outputs, name=name or f"wrn_{depth}_{width}")
