"""The work in TensorFlow 2.15 and Keras 2: TensorFlow Privacy's models, optimizers."""

import sys

import tensorflow as tf
import tensorflow_privacy as tfp
import worker
from tensorflow import keras
from tensorflow.keras import layers


def build(work):
    """The network with the work's weights; layers in the same order as everywhere."""

    def convolve(x, filters, size, stride):
        layer = layers.Conv2D(
            filters, size, strides=stride, padding="same", use_bias=False
        )
        return layer(x)

    def activate(x):
        return layers.ReLU()(layers.GroupNormalization(worker.GROUPS)(x))

    inputs = keras.Input((32, 32, 3))
    x = convolve(layers.Rescaling(2.0, offset=-1.0)(inputs), 16, 3, 1)
    for stage, filters in enumerate((64, 128, 256)):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            active = activate(x)
            widens = x.shape[-1] != filters
            shortcut = convolve(active, filters, 1, stride) if widens else x
            y = convolve(active, filters, 3, stride)
            x = layers.Add()([shortcut, convolve(activate(y), filters, 3, 1)])
    x = layers.GlobalAveragePooling2D()(activate(x))
    network = keras.Model(inputs, layers.Dense(10)(x))
    worker.set_weights(network, work)
    return network


def main(path):
    """Serves."""
    work = worker.load(path)
    examples, count = work.views.shape[:2]
    views = tf.constant(work.views.reshape(-1, *work.views.shape[2:]))
    labels = tf.constant(work.labels.reshape(-1, work.labels.shape[-1]))
    noise = {
        "l2_norm_clip": worker.CLIP_NORM,
        "noise_multiplier": worker.NOISE_MULTIPLIER,
    }

    def view_losses(network):
        logits = network(views, training=True)
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)

    network = build(work)
    sgd = keras.optimizers.legacy.SGD(worker.LEARNING_RATE)

    @tf.function
    def plain():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(view_losses(network))
        variables = network.trainable_variables
        sgd.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def clipped_sum_of(optimizer_class):
        """Without noise, which these optimizers add in the same call."""
        quiet = noise | {"noise_multiplier": 0.0}
        optimizer = optimizer_class(num_microbatches=examples, **quiet)
        network = build(work)

        @tf.function
        def mean():
            with tf.GradientTape(persistent=True) as tape:
                losses = view_losses(network)
            pairs = optimizer._compute_gradients(
                losses, network.trainable_variables, tape=tape
            )
            return [gradient for gradient, _ in pairs]

        return lambda: [examples * part.numpy() for part in mean()]

    def step_of(optimizer_class):
        network = build(work)
        optimizer = optimizer_class(
            num_microbatches=examples, learning_rate=worker.LEARNING_RATE, **noise
        )

        @tf.function
        def step():
            with tf.GradientTape(persistent=True) as tape:
                losses = view_losses(network)
            optimizer.minimize(losses, network.trainable_variables, tape=tape)
            return losses

        return lambda: step().numpy()

    dp_network = build(work)
    dp_model = tfp.DPModel(
        num_microbatches=examples,
        use_xla=False,  # on CPUs XLA's convolutions take a hundred times as long
        inputs=dp_network.input,
        outputs=dp_network.output,
        **noise,
    )
    dp_model.compile(
        keras.optimizers.legacy.SGD(worker.LEARNING_RATE),
        keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
    )
    dp_step = tf.function(lambda: dp_model.train_step((views, labels)))

    classes = {
        "TensorFlow Privacy, VectorizedDPKerasSGD": (tfp.VectorizedDPKerasSGDOptimizer),
        "TensorFlow Privacy, DPKerasSGD": tfp.DPKerasSGDOptimizer,
    }
    worker.serve(
        f"TensorFlow Privacy {tfp.__version__}, TensorFlow {tf.__version__}",
        {
            "plain": lambda: plain().numpy(),
            "TensorFlow Privacy, DPModel": lambda: float(dp_step()["loss"]),
        }
        | {name: step_of(one) for name, one in classes.items()},
        {name: clipped_sum_of(one) for name, one in classes.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1])
