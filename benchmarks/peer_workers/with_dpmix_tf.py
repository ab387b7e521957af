"""The work in dpmix_tf: its engine on the same ready-made views."""

import sys
from importlib import metadata

import keras
import tensorflow as tf
import worker

from dpmix_tf.models import count_activations, wide_resnet
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.clipping import (
    add_vectorised,
    choose_chunk_size,
    clipped_gradient_sum,
)
from dpmix_tf.privacy.mechanism import GaussianMechanism


def build(work):
    """The network with the work's weights."""
    network = wide_resnet(input_shape=(32, 32, 3), num_classes=10)
    worker.set_weights(network, work)
    return network


def main(path):
    """Serves."""
    work = worker.load(path)
    examples, count = work.views.shape[:2]
    views, labels = tf.constant(work.views), tf.constant(work.labels)
    plan = PrivacyPlan(
        noise_multiplier=worker.NOISE_MULTIPLIER,
        clip_norm=worker.CLIP_NORM,
        delta=1e-6,
        num_examples=50_000,
        expected_batch_size=examples,
        updates=10_000,
    )

    def optimizer_for(network):
        optimizer = keras.optimizers.SGD(worker.LEARNING_RATE)
        optimizer.build(network.trainable_variables)
        return optimizer

    def mean_loss_of(network):
        def mean_loss(views, labels):
            logits = network(views, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
            return tf.reduce_mean(losses)

        return mean_loss

    plain_network = build(work)
    plain_optimizer = optimizer_for(plain_network)

    @tf.function
    def plain():
        variables = plain_network.trainable_variables
        with tf.GradientTape() as tape:
            loss = mean_loss_of(plain_network)(
                tf.reshape(views, [-1, *views.shape[2:]]),
                tf.reshape(labels, [-1, labels.shape[-1]]),
            )
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        plain_optimizer.apply(gradients, variables)
        return loss

    network = build(work)
    optimizer = optimizer_for(network)
    mechanism = GaussianMechanism(plan, seed=1)
    updates = tf.Variable(0, dtype=tf.int64)
    variables = network.trainable_variables
    chunk_size = choose_chunk_size(
        views_per_example=count,
        activations_per_view=count_activations(network),
        parameters=network.count_params(),
    )

    @tf.function
    def clipped_sum():
        return clipped_gradient_sum(
            mechanism,
            [variable.value for variable in variables],
            (views, labels),
            lambda views, labels: (views, labels),
            add_vectorised(variables, mean_loss_of(network)),
            chunk_size=chunk_size,
        ).total

    @tf.function
    def private():
        noisy = mechanism.noisy_mean(clipped_sum(), updates)
        optimizer.apply(noisy, variables)
        return updates.assign_add(1)

    version = metadata.version("dpmix_tf")
    worker.serve(
        f"dpmix_tf {version}, TensorFlow {tf.__version__}",
        {"plain": lambda: plain().numpy(), "dpmix_tf": lambda: private().numpy()},
        {"dpmix_tf": lambda: [part.numpy() for part in clipped_sum()]},
    )


if __name__ == "__main__":
    main(sys.argv[1])
