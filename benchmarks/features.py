r"""How fast features that need no data are made, beside Kymatio's.

  python benchmarks/features.py

Images of 32 x 32 pixels in three colours, a batch at a time. The first rows compute the
same wavelet scattering (J = 2, L = 8; the tests compare the numbers), the last ones all
features of the default network. They take turns in one process.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags
from kymatio.numpy import Scattering2D as KymatioNumpy
from kymatio.tensorflow import Scattering2D as KymatioTensorFlow
from timing import take_turns

from dpmix_tf import models
from dpmix_tf.files import write_text_atomic
from dpmix_tf.models.scattering import Scattering

_BATCH = flags.DEFINE_integer("batch", 100, "Images at a time.")
_FILTERS = flags.DEFINE_list("filters", ["256", "1024"], "Patches among the features.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns each contestant takes.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

SHAPE = (32, 32, 3)


def whole_front(filters):
    """The frozen front of the default network."""
    network = models.scattering_network(
        input_shape=SHAPE, num_classes=10, filters=filters
    )
    front, _ = models.split_frozen_front(network)
    return tf.function(front)


def contestants(images):
    """Name -> what makes a batch's features."""
    ours, graph = tf.function(Scattering(2)), KymatioTensorFlow(2, SHAPE[:2])
    theirs = tf.function(graph.scattering)
    channels = np.ascontiguousarray(np.moveaxis(images, 3, 1))
    in_numpy = KymatioNumpy(2, SHAPE[:2])
    channels_first, images = tf.constant(channels), tf.constant(images)
    steps = {
        "scattering, dpmix_tf": lambda: ours(images).numpy(),
        "scattering, Kymatio in TensorFlow": lambda: theirs(channels_first).numpy(),
        "scattering, Kymatio in NumPy": lambda: in_numpy(channels),
    }
    for filters in map(int, _FILTERS.value):
        front = whole_front(filters)
        name = f"scattering+patches, {filters:,} filters"
        steps[name] = lambda front=front: front(images).numpy()
    return steps


def main(_):
    """Prints the table."""
    random = np.random.default_rng(0)
    images = random.uniform(size=(_BATCH.value, *SHAPE)).astype(np.float32)
    seconds = take_turns(contestants(images), _REPEATS.value)
    rates = {
        name: sorted(_BATCH.value / np.array(each)) for name, each in seconds.items()
    }
    first = np.median(rates["scattering, dpmix_tf"])
    print("| features | images per second | relative to the first |")
    print("|---|---|---|")
    for name, each in rates.items():
        middle = np.median(each)
        print(
            f"| {name} | {middle:.0f} ({each[0]:.0f}-{each[-1]:.0f}) | "
            f"{middle / first:.2g} |"
        )
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(seconds, indent=1))


if __name__ == "__main__":
    app.run(main)
