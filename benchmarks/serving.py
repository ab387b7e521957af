r"""Images a second of an exported SavedModel against Keras's model.predict.

  python benchmarks/serving.py

Both run in one process and take turns; `serving_bytes` decodes PNG files as well.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from networks import NETWORKS

from dpmix_tf.files import write_text_atomic
from dpmix_tf.images import to_png
from dpmix_tf.serving.signatures import add_signatures

_NETWORKS = flags.DEFINE_list(
    "networks", ["digits", "convnet", "wide_resnet_16_4"], "Which networks."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Images a request.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "For each turn.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


def rate(function, batch):
    """Images a second over one turn."""
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < _SECONDS.value:
        function()
        done += batch
    return done / took


def compare(name, network, batch, folder):
    """Rates of the ways to ask, in turns."""
    archive = keras.export.ExportArchive()
    names = [str(label) for label in range(network.output_shape[-1])]
    add_signatures(archive, network, names, network.input_shape[1:])
    archive.write_out(folder, verbose=False)
    served = tf.saved_model.load(str(folder)).signatures
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *network.input_shape[1:]), dtype=np.uint8)
    floats, files = images / np.float32(255), [to_png(image) for image in images]
    ways = {
        "model.predict": lambda: network.predict(floats, batch, verbose=0),
        "serving_default": lambda: served["serving_default"](
            images=tf.constant(images)
        )["scores"].numpy(),
        "serving_bytes": lambda: served["serving_bytes"](
            image_bytes=tf.constant(files)
        )["scores"].numpy(),
    }
    for function in ways.values():
        function()
    rates = {way: [] for way in ways}
    for _ in range(_TURNS.value):
        for way, function in ways.items():
            rates[way].append(rate(function, batch))
    return {"network": name, "batch": batch, "rates": rates}


def main(argv):
    """Prints a line a network and batch."""
    del argv
    print(
        "| network | images a request | model.predict, images/s | serving_default | "
        "ratio | serving_bytes |"
    )
    print("|---|---|---|---|---|---|")
    results = []
    for name in _NETWORKS.value:
        network = NETWORKS[name]()
        for batch in map(int, _BATCHES.value):
            with tempfile.TemporaryDirectory() as folder:
                result = compare(name, network, batch, Path(folder) / "model")
            middle = {
                way: statistics.median(values)
                for way, values in result["rates"].items()
            }
            ratio = middle["serving_default"] / middle["model.predict"]
            print(
                f"| {name} | {batch} | {middle['model.predict']:.0f} | "
                f"{middle['serving_default']:.0f} | {ratio:.2f} | "
                f"{middle['serving_bytes']:.0f} |",
                flush=True,
            )
            results.append(result | {"ratio": ratio})
    if _JSON.value:
        write_text_atomic(_JSON.value, json.dumps(results))


if __name__ == "__main__":
    app.run(main)
