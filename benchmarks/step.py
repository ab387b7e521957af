r"""How long a private update takes, against the plain step on the same views.

  python benchmarks/step.py
  python benchmarks/step.py --networks=wide_resnet_16_4 --views=16 --repeats=9

For each network and K: a plain, non-private gradient step on one batch of ready-made
views (the floor), and a whole private update, with views made inside, noise and
optimizer. They take turns, A B A B, in one process; medians are compared. For the
linear probe the floor is the frozen encoder's forward pass. "Views" is what making the
views takes alone, in percent of the private update.
"""

import json
import statistics
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from networks import NETWORKS
from timing import spread, take_turns

from dpmix_tf import views
from dpmix_tf.data import Batch
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import DPMixModel

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which networks.")
_VIEWS = flags.DEFINE_list("views", ["1", "16", "34"], "Which K: 1, 16, 34 or 36.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "Examples in the batch; default 512 / K, and at least 16."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns each contestant takes.")
_CHUNK = flags.DEFINE_integer("chunk_size", None, "Examples vectorised; default auto.")
_POLICY = flags.DEFINE_enum(
    "policy", "float32", ["float32", "mixed_bfloat16"], "Keras's dtype policy."
)
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


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


def forward_pass(network, count):
    """The frozen encoder on `count` random views, made beforehand."""
    encoder = keras.Model(network.inputs, network.layers[-1].input)
    images = tf.random.uniform([count, *network.input_shape[1:]])
    step = tf.function(lambda: tf.reduce_sum(encoder(images)))
    return lambda: float(step())


def private_step(network, make_views, examples):
    """A whole private update of DPMixModel on `examples` random images."""
    plan = PrivacyPlan(
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
    ids = tf.range(examples, dtype=tf.int64)
    batch = Batch(images, tf.range(examples) % 10, ids, update=None)
    step = tf.function(lambda: model.train_step(batch))
    return lambda: int(step()["updates"]), model.chunk_size


def views_alone(make_views, examples, chunk_size, shape):
    """Makes the views of an update's examples, chunk after chunk."""
    images = tf.zeros([chunk_size, *shape], tf.uint8)
    labels = tf.one_hot(tf.range(chunk_size) % 10, 10)

    @tf.function
    def step():
        total = tf.constant(0.0)
        for start in tf.range(0, examples, chunk_size):
            seeds = tf.stack([tf.range(chunk_size), tf.fill([chunk_size], start)], 1)
            made, _ = make_views.several(images, labels, tf.cast(seeds, tf.int64))
            total += made[0, 0, 0, 0, 0]
        return total

    return lambda: float(step())


def pool_for(shape):
    """A pool of 1,000 random images."""
    random = np.random.default_rng(1)
    return SyntheticPool(
        images=random.integers(0, 256, (1_000, *shape), dtype=np.uint8),
        labels=np.sort(np.arange(1_000) % 10).astype(np.int32),
        class_names=tuple("0123456789"),
        digest="",
    )


def views_for(count, shape):
    """The arm that makes `count` views."""
    crop = {"augment": "crop_flip", "padding": shape[0] // 8}
    if count == 36:
        return "DP-Mix_Diff", views.dp_mix_diff(pool=pool_for(shape), **crop)
    return {
        1: ("DP-SGD", views.no_augmentation()),
        16: ("Self-Aug", views.self_aug(**crop)),
        34: ("DP-Mix_Self", views.dp_mix_self(**crop)),
    }[count]


def main(argv):
    """Prints a table; a file gets all figures."""
    del argv
    keras.config.set_dtype_policy(_POLICY.value)
    results = []
    print(
        "| network | arm | K | examples | chunk | floor, ms | private, ms | ratio "
        "| views |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in _NETWORKS.value:
        for count in map(int, _VIEWS.value):
            network = NETWORKS[name]()
            shape = network.input_shape[1:]
            arm, maker = views_for(count, shape)
            examples = _EXAMPLES.value or max(16, 512 // count)
            make_floor = forward_pass if name == "linear_probe" else plain_step
            private, chunk = private_step(network, maker, examples)
            seconds = take_turns(
                {
                    "floor": make_floor(network, examples * count),
                    "private": private,
                    "views": views_alone(maker, examples, chunk, shape),
                },
                _REPEATS.value,
            )
            median = {key: statistics.median(took) for key, took in seconds.items()}
            ratio = median["private"] / median["floor"]
            print(
                f"| {name} | {arm} | {count} | {examples} | {chunk} "
                f"| {spread(seconds['floor'])} | {spread(seconds['private'])} "
                f"| {ratio:.2f} | {median['views'] / median['private']:.1%} |",
                flush=True,
            )
            results.append(
                {
                    "network": name,
                    "views": count,
                    "examples": examples,
                    "chunk_size": chunk,
                    "policy": _POLICY.value,
                    "ratio": ratio,
                    "seconds": seconds,
                }
            )
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
