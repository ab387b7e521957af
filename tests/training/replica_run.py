"""Trains a tiny network without and with noise, under a strategy; saves the weights.

python -m tests.training.replica_run none|mirrored|multi_worker weights.npz
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.training import DPMixModel, cluster, encode_views
from tests.conftest import plan_for, tiny_network

UPDATES = 5
NOISE = 3.0
LEARNING_RATE = 0.5
EXAMPLES, BATCH, CLIP = 50, 3, 0.2


def plan(noise):
    return plan_for(EXAMPLES, batch=BATCH, noise=noise, clip=CLIP, updates=UPDATES)


def batches(noise, seed):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (EXAMPLES, 8, 8, 1), np.uint8)
    source = ArraySource(images, random.integers(0, 10, EXAMPLES), "abcdefghij")
    return PoissonBatches(source, plan(noise), seed=seed)


def train(strategy, noise):
    """Weights after the first update, after the last one, and averaged."""
    # Initial weights and seeds are the first worker's, whatever the others have.
    other = 0 if cluster.is_chief(strategy) else 1
    with strategy.scope():
        keras.utils.set_random_seed(other)
        network = keras.models.clone_model(tiny_network())
        model = DPMixModel(
            network,
            plan=plan(noise),
            views=views.dp_mix_self(base=2, mixed=1, padding=1),
            seed=3 + other,
            ema_decay=0.5,
        )
        model.compile(keras.optimizers.SGD(LEARNING_RATE, momentum=0.5))
    variables = model.network.trainable_variables
    model.fit(batches(noise, seed=4 + other), steps_per_epoch=1, verbose=0)
    weights = {f"{noise} first {i}": v.numpy() for i, v in enumerate(variables)}
    model.fit(batches(noise, seed=4 + other), verbose=0)
    assert model.updates == UPDATES
    last = [*variables, *model.average.averages]
    return weights | {f"{noise} last {i}": v.numpy() for i, v in enumerate(last)}


def train_encoded(strategy, cache_dir):
    """Weights of a head on a frozen layer, whose views all processes have encoded."""
    other = 0 if cluster.is_chief(strategy) else 1
    drawn = batches(NOISE, seed=4 + other)
    with strategy.scope():
        keras.utils.set_random_seed(other)
        inputs = keras.Input((8, 8, 1))
        frozen = keras.layers.Conv2D(4, 3, strides=2, trainable=False)
        values = keras.layers.Flatten()(frozen(inputs))
        network = keras.Model(inputs, keras.layers.Dense(10)(values))
        maker = views.dp_mix_self(base=2, mixed=1, padding=1, visits=2)
        encoded = encode_views(network, maker, drawn.source, cache_dir=cache_dir)
        model = DPMixModel(network, plan=plan(NOISE), views=encoded, seed=3 + other)
        model.compile(keras.optimizers.SGD(LEARNING_RATE))
    model.fit(drawn, verbose=0)
    variables = model.network.trainable_variables
    return {f"encoded {i}": v.numpy() for i, v in enumerate(variables)}


if __name__ == "__main__":
    name, path = sys.argv[1:]
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
    else:
        strategy = cluster.make_strategy(name)
    encoded = train_encoded(strategy, Path(path).parent / "cache")
    np.savez(path, **train(strategy, 0.0), **train(strategy, NOISE), **encoded)
