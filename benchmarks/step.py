r"""How long a private update takes, against the plain step on the same views.

  python benchmarks/step.py
  python benchmarks/step.py --networks=wide_resnet --examples=8 --repeats=9

For each network: a plain, non-private gradient step on one batch of ready-made views
(the floor), and the private update of each arm, views made inside. The contestants
take turns, A B C A B C, in one process; medians are compared. A ratio is to the plain
step on the same number of views; DP-Mix_Diff is also compared with DP-Mix_Self.
"""

import json
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from dpmix_tf import views
from dpmix_tf.data import Batch
from dpmix_tf.models import convnet, wide_resnet
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import DPMixModel

NETWORKS = {
    "digits": lambda: convnet(input_shape=(8, 8, 1), num_classes=10),
    "convnet": lambda: convnet(
        input_shape=(32, 32, 3), num_classes=10, widths=(16, 32, 64)
    ),
    "wide_resnet": lambda: wide_resnet(input_shape=(32, 32, 3), num_classes=10),
}

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which networks.")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Examples in the batch.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns each contestant takes.")
_CHUNK = flags.DEFINE_integer("chunk_size", 2, "Examples in flight together.")


def plain_step(network, count):
    """A non-private step on `count` random views, made beforehand."""
    optimizer = keras.optimizers.SGD(1e-6)
    variables = network.trainable_variables
    optimizer.build(variables)
    images = tf.random.uniform([count, *network.input_shape[1:]])
    labels = tf.one_hot(tf.range(count) % 10, 10)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(labels, logits)
            )
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return loss

    return lambda: float(step())


def private_step(network, make_views, examples):
    """A whole private update of DPMixModel on `examples` random images."""
    plan = PrivacyPlan.for_noise(
        noise_multiplier=1.0,
        delta=1e-6,
        num_examples=50_000,
        expected_batch_size=examples,
        updates=10_000,
    )
    model = DPMixModel(network, plan=plan, views=make_views, chunk_size=_CHUNK.value)
    model.compile(keras.optimizers.SGD(1e-6))
    random = np.random.default_rng(0)
    shape = (examples, *network.input_shape[1:])
    images = tf.constant(random.integers(0, 256, shape, dtype=np.uint8))
    batch = Batch(images, tf.range(examples) % 10, tf.range(examples, dtype=tf.int64))
    step = tf.function(lambda: model.train_step(batch))
    return lambda: int(step()["updates"])


def pool_for(shape):
    """A pool of 1,000 random images."""
    random = np.random.default_rng(1)
    return SyntheticPool(
        images=random.integers(0, 256, (1_000, *shape), dtype=np.uint8),
        labels=np.sort(np.arange(1_000) % 10).astype(np.int32),
        class_names=tuple("0123456789"),
        digest="",
    )


def measure(contestants, repeats):
    """Seconds of each contestant, taking turns; the first two turns do not count."""
    seconds = {name: [] for name in contestants}
    for turn in range(repeats + 2):
        for name, step in contestants.items():
            started = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(argv):
    """Prints one table a network and a JSON line with all figures."""
    del argv
    results = {}
    for name in _NETWORKS.value:
        network, examples = NETWORKS[name](), _EXAMPLES.value
        shape = network.input_shape[1:]
        crop = {"augment": "crop_flip", "padding": shape[0] // 8}
        makers = {
            "DP-SGD": views.no_augmentation(),
            "Self-Aug 16": views.self_aug(**crop),
            "DP-Mix_Self": views.dp_mix_self(**crop),
            "DP-Mix_Diff": views.dp_mix_diff(pool=pool_for(shape), **crop),
        }
        contestants = {}
        for arm, maker in makers.items():
            views_made = examples * maker.views_per_example
            contestants[f"plain {arm}"] = plain_step(network, views_made)
            contestants[arm] = private_step(network, maker, examples)
        seconds = measure(contestants, _REPEATS.value)
        median = {key: statistics.median(values) for key, values in seconds.items()}
        print(f"\n{name}, {examples} examples, chunk {_CHUNK.value}\n")
        print("| arm | views | plain, s | private, s | ratio | fastest/slowest, s |")
        print("|---|---|---|---|---|---|")
        for arm, maker in makers.items():
            ratio = median[arm] / median[f"plain {arm}"]
            print(
                f"| {arm} | {maker.views_per_example} | {median[f'plain {arm}']:.4f} "
                f"| {median[arm]:.4f} | {ratio:.2f} "
                f"| {min(seconds[arm]):.4f}/{max(seconds[arm]):.4f} |"
            )
        diff = median["DP-Mix_Diff"] / median["DP-Mix_Self"]
        print(f"\nDP-Mix_Diff / DP-Mix_Self: {diff:.3f} (36/34 = {36 / 34:.3f})")
        results[name] = seconds
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    app.run(main)
