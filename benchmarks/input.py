r"""Sampling, reading, and how much of training waits for them.

  python benchmarks/input.py

Three tables: drawing one Poisson batch, against tossing a coin for each example;
reading one from memory, from a memory-mapped .npy file, from image files and from
TFDS's ArrayRecord; and the share of a private training's time that `fit` waited for
batches.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags
from networks import NETWORKS
from PIL import Image

from dpmix_tf import views
from dpmix_tf.data import ArraySource, ImageFolderSource, PoissonBatches
from dpmix_tf.data.decoded import TfdsSource
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import DPMixModel

_EXAMPLES = flags.DEFINE_integer("examples", 100_000, "32x32 images in the files.")
_BATCH = flags.DEFINE_integer("batch", 1024, "Expected batch size for reading.")
_NETWORKS = flags.DEFINE_list(
    "networks", ["convnet", "wide_resnet_16_1"], "Which ones to train while reading."
)
_VIEWS = flags.DEFINE_list("views", ["1", "16"], "Numbers of views K to train with.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Batches timed.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

IMAGE_FILES = 2_000


class Numbers:
    """As many examples as asked for, that nobody reads."""

    record = "example"

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count


def plan_for(count, batch, updates=1_000):
    """A plan; its noise does not matter here."""
    return PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-9,
        num_examples=count,
        expected_batch_size=batch,
        updates=updates,
    )


def milliseconds(function):
    """Median and range over repeats; the first call does not count."""
    values = []
    for repeat in range(_REPEATS.value + 1):
        started = time.perf_counter()
        function(repeat)
        values.append(1e3 * (time.perf_counter() - started))
    return values[1:]


def spread(values):
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def sampling():
    """Ours against a coin for every example."""
    print("| examples | expected batch | skip sampling, ms | a coin each, ms |")
    print("|---|---|---|---|")
    results = []
    for count, batch in (
        (50_000, 4_096),
        (10_000_000, 4_096),
        (10_000_000, 65_536),
        (10_000_000, 1_000_000),
    ):
        batches = PoissonBatches(Numbers(count), plan_for(count, batch), seed=1)
        generator = np.random.default_rng(1)
        skips = milliseconds(batches.indices)
        coins = milliseconds(
            lambda _, count=count, batch=batch, generator=generator: np.flatnonzero(
                generator.random(count) < batch / count
            )
        )
        print(f"| {count:,} | {batch:,} | {spread(skips)} | {spread(coins)} |")
        results.append({"examples": count, "batch": batch, "ms": skips, "coins": coins})
    return results


def make_sources(folder):
    """(what it is, source) for every way in which examples are kept."""
    random = np.random.default_rng(0)
    count, files = _EXAMPLES.value, min(IMAGE_FILES, _EXAMPLES.value)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    yield "in memory", ArraySource(images, labels)
    np.save(folder / "images.npy", images)
    mapped = np.load(folder / "images.npy", mmap_mode="r")
    yield "memory-mapped .npy", ArraySource(mapped, labels)
    for index in range(files):
        path = folder / "png" / str(labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(path)
    yield "PNG files", ImageFolderSource(folder / "png", (32, 32, 3))
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="squares",
        version="1.0.0",
        data_dir=folder,
        file_format="array_record",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices(
                {"image": images[:files], "label": labels[:files]}
            )
        },
        disable_shuffling=True,
    )
    builder = tfds.builder("squares", data_dir=folder)
    records = TfdsSource(builder.as_data_source("train"), (32, 32, 3), "0123456789")
    yield "TFDS ArrayRecord, PNG", records


def reading(sources):
    """Drawn, read and decoded, nothing prefetched."""
    print("\n| kept | examples | batch | one batch, ms | images a second |")
    print("|---|---|---|---|---|")
    results = []
    for name, source in sources:
        batch = min(_BATCH.value, len(source) // 2)
        batches = PoissonBatches(source, plan_for(len(source), batch), seed=1)
        took = milliseconds(lambda t, s=source, b=batches: s.read(b.indices(t)))
        rate = 1e3 * batch / statistics.median(took)
        print(f"| {name} | {len(source):,} | {batch} | {spread(took)} | {rate:,.0f} |")
        results.append({"kept": name, "batch": batch, "ms": took})
    return results


def waiting(sources):
    """Private training; the share of its time spent waiting for batches."""
    print("\n| kept | network | K | expected batch | update, ms | waited |")
    print("|---|---|---|---|---|---|")
    results = []
    for name, source in sources:
        for network in _NETWORKS.value:
            for count in map(int, _VIEWS.value):
                maker = (
                    views.no_augmentation()
                    if count == 1
                    else views.self_aug(base=count, augment="crop_flip")
                )
                updates, batch = 12, min(128, _BATCH.value)
                model = DPMixModel(
                    NETWORKS[network](),
                    plan=plan_for(len(source), batch, updates),
                    views=maker,
                )
                model.compile(keras.optimizers.SGD(1e-6))
                batches = PoissonBatches(source, model.plan)
                model.fit(batches, steps_per_epoch=2, verbose=0)  # traced here
                started, waited = time.perf_counter(), model.input_seconds
                model.fit(batches, verbose=0)
                took = time.perf_counter() - started
                share = (model.input_seconds - waited) / took
                update = 1e3 * took / (updates - 2)
                print(
                    f"| {name} | {network} | {count} | {batch} | {update:.0f} "
                    f"| {share:.1%} |",
                    flush=True,
                )
                results.append(
                    {
                        "kept": name,
                        "network": network,
                        "views": count,
                        "update_ms": update,
                        "waited": share,
                    }
                )
    return results


def main(argv):
    """Prints three tables; a file gets all figures."""
    del argv
    tf.get_logger().setLevel("ERROR")
    results = {"sampling": sampling()}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS tells what it prepares
            sources = list(make_sources(Path(folder)))
        results |= {"reading": reading(sources), "waiting": waiting(sources)}
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
