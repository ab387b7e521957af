"""The work in JAX: jax_privacy. The network is the library's own, on Keras's JAX."""

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import worker
from jax_privacy import clipped_grad, noise_addition

# By its path: the package itself needs TensorFlow.
_NETWORK = Path(__file__).parents[2] / "dpmix_tf" / "models" / "wide_resnet.py"


def build(work):
    """The network with the work's weights: a pure function, and its parameters."""
    spec = importlib.util.spec_from_file_location("wide_resnet", _NETWORK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.wide_resnet(input_shape=(32, 32, 3), num_classes=10)
    worker.set_weights(network, work)
    frozen = [variable.value for variable in network.non_trainable_variables]

    def apply(parameters, images):
        return network.stateless_call(parameters, frozen, images, training=True)[0]

    return apply, [variable.value for variable in network.trainable_variables]


def main(path):
    """Serves."""
    work = worker.load(path)
    views, labels = jnp.asarray(work.views), jnp.asarray(work.labels)
    examples = len(views)
    flat_views = views.reshape(-1, *views.shape[2:])
    flat_labels = labels.reshape(-1, labels.shape[-1])
    apply, initial = build(work)

    def loss(parameters, views, labels):
        scores = jax.nn.log_softmax(apply(parameters, views))
        return -jnp.mean(jnp.sum(labels * scores, axis=-1))

    def descend(parameters, gradients):
        rate = worker.LEARNING_RATE
        return [p - rate * g for p, g in zip(parameters, gradients, strict=True)]

    @jax.jit
    def plain_step(parameters):
        gradients = jax.grad(loss)(parameters, flat_views, flat_labels)
        return descend(parameters, gradients)

    # One example after the other (microbatch_size=1) takes XLA's loop, in which a CPU's
    # convolutions are 14 times slower still.
    clipped_sum = clipped_grad(
        loss,
        l2_clip_norm=worker.CLIP_NORM,
        batch_argnums=(1, 2),
        keep_batch_dim=False,
    )
    noise = noise_addition.gaussian_privatizer(
        stddev=worker.NOISE_MULTIPLIER * worker.CLIP_NORM,
        prng_key=jax.random.key(0),
    )

    @jax.jit
    def private_step(state):
        parameters, noise_state = state
        total = clipped_sum(parameters, views, labels)
        noisy, noise_state = noise.update(total, noise_state)
        mean = [part / examples for part in noisy]
        return descend(parameters, mean), noise_state

    def repeated(step, state):
        def run():
            nonlocal state
            state = jax.block_until_ready(step(state))

        return run

    worker.serve(
        f"jax_privacy {metadata.version('jax-privacy')}, JAX {jax.__version__}",
        {
            "plain": repeated(plain_step, initial),
            "jax_privacy": repeated(private_step, (initial, noise.init(initial))),
        },
        {"jax_privacy": lambda: jax.jit(clipped_sum)(initial, views, labels)},
    )


if __name__ == "__main__":
    main(sys.argv[1])
