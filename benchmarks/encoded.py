r"""How long an update of a head takes on encoded views, against its alternatives.

  python benchmarks/encoded.py
  python benchmarks/encoded.py --heads=encoder --repeats=9

For each head: a private update that makes and encodes its views; the same update on
features from a store, with the clipped sum in closed form, and with a gradient for each
record; and a plain, non-private Keras step on the same features, read from the same
store (the floor). They take turns in one process, and medians are compared. Encoding is
slow, so that update gets fewer examples, and its time is scaled up to the others'.
"""

import json
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from timing import spread, take_turns

from dpmix_tf import models, views
from dpmix_tf.data import ArraySource, Batch
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.clipping import add_vectorised
from dpmix_tf.training import DPMixModel
from dpmix_tf.views import EncodedViews, FeatureStore, Layout

# Name -> (K, examples of an update, of the update that encodes, network).
HEADS = {
    "encoder": (34, 1_000, 20, lambda: efficientnet(112)),
    "scattering": (1, 8_192, 1_024, lambda: scattering()),
}
_HEADS = flags.DEFINE_list("heads", list(HEADS), "Which heads.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns each contestant takes.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


def efficientnet(size):
    """A linear head on a frozen EfficientNet-Lite0: 1,280 features."""
    return models.pretrained(
        input_shape=(32, 32, 3),
        num_classes=10,
        encoder="efficientnet_lite0",
        image_size=size,
    )


def scattering():
    """A linear head on the scattering of a 32 x 32 colour image: 15,552 features."""
    return models.scattering_network(
        input_shape=(32, 32, 3), num_classes=10, features="scattering"
    )


def store_of(folder, network, count, examples):
    """A store of random features, as wide as the network's front emits."""
    front, _ = models.split_frozen_front(network)
    layout = Layout(
        rows=2 * examples,
        views=(1, count),
        features=tuple(front.output_shape[1:]),
        dtype="float16",
        classes=10,
    )
    store = FeatureStore(folder, {"random": count}, layout)
    random = np.random.default_rng(0)
    for block in range(layout.blocks):
        rows = len(layout.rows_of(block))
        shape = (rows, 1, count)
        store.write(
            block,
            random.normal(0, 0.1, (*shape, *layout.features)).astype(np.float16),
            random.integers(0, 10, (*shape, 2)),
            np.full((*shape, 2), 0.5),
        )
    return store


def private(network, made, examples, *, dense=True):
    """One update of DPMixModel."""
    plan = PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-6,
        num_examples=50_000,
        expected_batch_size=examples,
        updates=10_000,
    )
    model = DPMixModel(network, plan=plan, views=made)
    if not dense:
        model.step.add_records = add_vectorised(
            network.trainable_variables, model.step.mean_loss
        )
        model.step.chunk_size = 32
    model.compile(keras.optimizers.SGD(1e-6))
    images = np.zeros((examples, *network.input_shape[1:]), np.uint8)
    batch = Batch(
        tf.constant(images[:, :0] if made.encoded else images),
        tf.range(examples) % 10,
        tf.range(0, 2 * examples, 2, dtype=tf.int64),
        update=None,
    )
    step = tf.function(lambda: model.train_step(batch))
    return lambda: int(step()["updates"])


def plain(network, store, examples):
    """A non-private step on the same features, read from the same store."""
    _, head = models.split_frozen_front(network)
    optimizer = keras.optimizers.SGD(1e-6)
    variables = head.trainable_variables
    optimizer.build(variables)
    rows, visits = np.arange(0, 2 * examples, 2), np.zeros(examples, int)

    @tf.function
    def step():
        features, classes, weights = tf.numpy_function(
            lambda: store.read(rows, visits), [], [tf.float16, tf.int32, tf.float32]
        )
        features = tf.cast(features, tf.float32)
        features = tf.reshape(features, [-1, *store.layout.features])
        labels = tf.reduce_sum(tf.one_hot(classes, 10) * weights[..., None], axis=-2)
        labels = tf.reshape(labels, [-1, 10])
        with tf.GradientTape() as tape:
            losses = tf.nn.softmax_cross_entropy_with_logits(labels, head(features))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    return lambda: float(step())


def compare(name, folder):
    """Seconds per update of every contestant."""
    count, examples, fewer, build = HEADS[name]
    network = build()
    maker = views.dp_mix_self(visits=1) if count > 1 else views.ViewMaker(visits=1)
    store = store_of(folder, network, count, examples)
    images = np.zeros((1, *network.input_shape[1:]), np.uint8)
    source = ArraySource(images, np.zeros(1, np.int32), tuple("0123456789"))
    encoded = EncodedViews(maker=maker, store=store, source=source)
    contestants = {
        "plain": plain(network, store, examples),
        "closed form": private(network, encoded, examples),
        "gradients": private(network, encoded, examples, dense=False),
        "encoding": private(network, maker, fewer),
    }
    seconds = take_turns(contestants, _REPEATS.value)
    scaled = [each * examples / fewer for each in seconds["encoding"]]
    return {**seconds, "encoding": scaled}


def main(_):
    """Prints the table."""
    print("| head | K | examples | plain, ms | closed form | gradients | encoding |")
    print("|---|---|---|---|---|---|---|")
    found, ratios = {}, []
    for name in _HEADS.value:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = seconds = compare(name, folder)
        count, examples, _, _ = HEADS[name]
        cells = [spread(seconds[each]) for each in seconds]
        print(f"| {name} | {count} | {examples:,} | {' | '.join(cells)} |", flush=True)
        medians = {each: float(np.median(seconds[each])) for each in seconds}
        for each in ("plain", "gradients", "encoding"):
            ratio = medians["closed form"] / medians[each]
            ratios.append(f"- {name}, closed form / {each}: {ratio:.3g}")
    print("", *ratios, sep="\n")
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
