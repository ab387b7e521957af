r"""What training on millions of images would cost: a model, and how well it predicts.

  python benchmarks/cost_model.py
  python benchmarks/cost_model.py --output=docs/scale.md

Measures on this machine what does not depend on an accelerator, predicts an update of
two processes from one of one process and from what another network's weights take to
send, and compares. The tables for accelerators rest on assumptions, which are listed.
"""

import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import costs
import numpy as np
import scaling
from absl import app, flags
from timing import machine

from dpmix_tf.files import write_text_atomic

_OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write the page to.")
_WORKERS = flags.DEFINE_list("workers", ["1", "8", "64"], "Numbers of accelerators.")
_FILES = flags.DEFINE_integer("files", 400, "JPEG files to read.")

DATA = {"ImageNet-1k": (1_281_167, 16_384), "Ten million images": (10_000_000, 65_536)}


def rate(work, amount):
    """Amount per second, median of five turns after a first one."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return amount / statistics.median(seconds[1:])


def measure_sampling():
    """(N, B) -> seconds to draw a batch."""
    from dpmix_tf.data import PoissonBatches
    from dpmix_tf.privacy import PrivacyPlan

    found = {}
    for count, batch in DATA.values():
        plan = PrivacyPlan(
            noise_multiplier=1.0,
            delta=1e-9,
            num_examples=count,
            expected_batch_size=batch,
            updates=1_000,
        )
        batches = PoissonBatches(range(count), plan, seed=1)
        found[count, batch] = 1 / rate(lambda batches=batches: batches.indices(0), 1)
    return found


def measure_files(folder):
    """JPEG images decoded per second and core, and files examined per second."""
    from PIL import Image

    from dpmix_tf.data import ImageFolderSource

    random, count = np.random.default_rng(0), _FILES.value
    for index in range(count):
        small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((500, 375)).save(path, quality=90)
    source = ImageFolderSource(folder, (224, 224, 3))
    cores = len(os.sched_getaffinity(0))
    decoded = rate(lambda: source.read(np.arange(count)), count) / cores
    seconds = []
    for _ in range(3):
        fresh = ImageFolderSource(folder, (224, 224, 3))
        for known in folder.rglob(".dpmix*"):
            known.unlink()
        started = time.perf_counter()
        fresh.examine()
        seconds.append(time.perf_counter() - started)
    return decoded, count / statistics.median(seconds)


def measure_store(folder):
    """Bytes of features hashed and gathered per second."""
    from dpmix_tf.views import FeatureStore, Layout

    layout = Layout(
        rows=2_000, views=(1, 34), features=(768,), dtype="float16", classes=1_000
    )
    store = FeatureStore(folder, {}, layout)
    for block in range(layout.blocks):
        shape = (len(layout.rows_of(block)), 1, 34)
        pairs = np.zeros((*shape, 2))
        store.write(block, np.ones((*shape, 768), np.float16), pairs, pairs)
    content = store.path(0).read_bytes()
    hashed = rate(lambda: hashlib.sha256(content), len(content))
    rows = np.sort(np.random.default_rng(0).choice(2_000, 1_000, replace=False))
    visits = np.zeros(1_000, int)
    size = 1_000 * layout.row_type.itemsize
    return hashed, rate(lambda: store.read(rows, visits), size), layout


def measure_encoding(folder):
    """Views per second: of encode_views with a frozen WRN-16-4, and of its passes."""
    import tensorflow as tf
    from networks import linear_probe

    from dpmix_tf import views
    from dpmix_tf.data import ArraySource
    from dpmix_tf.models import split_frozen_front
    from dpmix_tf.training import encode_views

    network, count = linear_probe(), 60
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    maker = views.dp_mix_self(augment="crop_flip", visits=1)
    source = ArraySource(images, np.arange(count) % 10)
    seconds = []
    for turn in range(3):
        started = time.perf_counter()
        encode_views(network, maker, source, cache_dir=folder / str(turn))
        seconds.append(time.perf_counter() - started)
    front, _ = split_frozen_front(network)
    batch = tf.zeros([238, 32, 32, 3])
    step = tf.function(lambda: front(batch, training=False))
    encoded = count * maker.views_per_example / statistics.median(seconds[1:])
    return encoded, rate(lambda: step().numpy(), 238)


def alone(processes, turns):
    """Median seconds of an update, and the processes' number of weights."""
    weights = int(scaling.answers(processes)[0])
    seconds = [scaling.turn(processes) for _ in range(turns + 1)][1:]
    for process in processes:
        process.stdin.close()
        process.wait()
    return statistics.median(seconds), weights


def check_two_processes():
    """Predicts an update of two processes, and measures it.

    Returns:
      Bytes sent per second; seconds of latency; a row for each network.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]

    def update(count, network, batch, turns):
        more = [f"--network={network}", f"--batch={batch}", f"--repeats={turns}"]
        return alone(scaling.start(cores[:count], *more), turns)

    def empty(count, network):
        return update(count, network, 0.01, 15)  # most batches have no example

    small, large = "wide_resnet_16_1", "wide_dense"
    differences, numbers = [], []
    for network in (small, large):
        single, weights = empty(1, network)
        differences.append(empty(2, network)[0] - single)
        numbers.append(4 * weights)
    bandwidth = (numbers[1] - numbers[0]) / (differences[1] - differences[0])
    latency = max(0.0, differences[0] - numbers[0] / bandwidth)
    rows = []
    for network, turns in (("convnet", 15), ("wide_resnet_16_4", 5)):
        nothing, weights = empty(1, network)
        whole, _ = update(1, network, 32, turns)
        sent = costs.all_reduce(weights, 2, bandwidth, latency)
        predicted = nothing + (whole - nothing) / 2 + sent
        measured, _ = update(2, network, 32, turns)
        rows.append((network, nothing, whole, sent, predicted, measured))
    return bandwidth, latency, rows


def count_network():
    """Weights, and operations of a forward pass, of WRN-40-4 at 32 x 32 pixels."""
    from dpmix_tf.models import wide_resnet

    network = wide_resnet(depth=40, width=4, input_shape=(32, 32, 3), num_classes=1_000)
    operations = 0
    for layer in network._flatten_layers(include_self=False):
        if hasattr(layer, "kernel"):
            places = np.prod(layer.output.shape[1:-1], dtype=int)
            operations += 2 * int(np.prod(layer.kernel.shape)) * int(places)
    return network.count_params(), operations


def cases(weights, operations):
    """The runs of the tables."""
    for name, (count, batch) in DATA.items():
        yield costs.Case(
            name=f"{name}, head on ViT-B/16",
            examples=count, batch=batch, updates=1_000, views=34,
            weights=768 * 1_000 + 1_000, forward=2 * 768 * 1_000,
            features=768, encoder=costs.ASSUMED["vit"][0],
        )  # fmt: skip
        yield costs.Case(
            name=f"{name} at 32 x 32, WRN-40-4 whole",
            examples=count, batch=batch, updates=20_000, views=16,
            weights=weights, forward=operations, image_bytes=32 * 32 * 3,
        )  # fmt: skip


def table(header, rows):
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def predicted_tables(measured, weights, operations):
    """Hours and disk for each case."""
    said = []
    for case in cases(weights, operations):
        rows = []
        for workers in map(int, _WORKERS.value):
            hours = costs.parts(case, workers, measured)
            longest = max(hours, key=hours.get)
            shown = [f"{hours[name]:,.2f}" for name in hours]
            rows.append(
                [workers, *shown, f"**{sum(hours.values()):,.1f}**", longest,
                 costs.REMEDIES[longest]]
            )  # fmt: skip
        disk = f"{case.stored_bytes / 1e9:,.0f} GB" if case.features else "none"
        said.append(
            f"### {case.name}\n\nN = {case.examples:,}, expected batch {case.batch:,}, "
            f"{case.updates:,} updates, K = {case.views}, {case.weights:,} trained "
            f"weights; {4 * case.weights / 1e6:,.1f} MB of gradient per update and "
            f"accelerator; encoded views on disk: {disk}. Hours:\n\n"
            + table(
                [
                    "accelerators",
                    "encoding",
                    "start-up",
                    "compute",
                    "all-reduce",
                    "apply",
                    "input",
                    "all",
                    "longest",
                    "remedy",
                ],
                rows,
            )  # fmt: skip
        )
    return said


def page():
    """Measures; returns the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decoded, examined = measure_files(folder / "images")
        hashed, gathered, layout = measure_store(folder / "store")
        encoded, passed = measure_encoding(folder / "cache")
    bandwidth, latency, checked = check_two_processes()
    measured = costs.Measured(
        sampling=measure_sampling(),
        decoded=decoded,
        examined=examined,
        hashed=hashed,
        gathered=gathered,
        latency=latency,
    )
    weights, operations = count_network()
    rows = [
        ["views encoded by `encode_views`, frozen WRN-16-4", f"{encoded:,.0f} /s"],
        ["of which by the encoder's passes alone", f"{passed:,.0f} /s"],
        ["JPEG images (500 x 375) decoded to 224 x 224", f"{decoded:,.0f} /s per core"],
        ["image files examined when a run starts", f"{examined:,.0f} /s"],
        ["encoded views verified (SHA-256)", f"{hashed / 1e9:.2f} GB/s"],
        ["encoded views gathered from memory", f"{gathered / 1e9:.2f} GB/s"],
        [
            "one view of 768 float16 features on disk, with its label",
            f"{layout.row_type.itemsize // 34:,} bytes",
        ],
        *(
            [f"a batch of {batch:,} of {count:,} drawn", f"{1e3 * seconds:.2f} ms"]
            for (count, batch), seconds in measured.sampling.items()
        ),
        ["WRN-40-4, 1,000 classes: weights", f"{weights:,}"],
        ["its forward pass of a 32 x 32 image", f"{operations / 1e9:.2f} GFLOP"],
    ]
    wide = 1_281_167 * 34 * (2 * 1_024 + 16)
    parts = [
        _HEAD,
        table(["measured or counted here", ""], rows),
        f"Measured on {machine()}\n",
        f"An encoder of 1,024 features instead of 768 makes {wide / 1e9:,.0f} GB of "
        "ImageNet at K = 34.\n",
        *check_section(bandwidth, latency, checked),
        _ASSUMED,
        table(
            ["assumed", "source"],
            [[words, source] for _, words, source in costs.ASSUMED.values()],
        ),
        _PREDICTED,
        *predicted_tables(measured, weights, operations),
        _TAIL,
    ]
    return "\n".join(parts)


def check_section(bandwidth, latency, rows):
    """The prediction for two processes beside the measurement."""
    shown = [
        [network, *(f"{value:.3f}" for value in values), f"{values[3] / values[4]:.2f}"]
        for network, *values in rows
    ]
    header = ["network", "empty, one process", "one process", "sending",
              "two, predicted", "two, measured", "ratio"]  # fmt: skip
    text = _CHECK.replace("BANDWIDTH", f"{bandwidth / 1e6:,.0f} MB/s")
    text = text.replace("LATENCY", f"{1e3 * latency:.1f} ms")
    return [text, table(header, shown)]


_HEAD = """# Scale

What training on a million or on ten million images would take, by a small model of its
cost (`benchmarks/costs.py`). Nothing here was run on an accelerator: what could be
measured was measured on processor cores, and the rest is assumed, with its source. Read
the tables for which part is the longest, and for orders of magnitude.

    python benchmarks/cost_model.py --output=docs/scale.md

## Measured
"""
_CHECK = """## Does the model predict?

Two processes on a core each (`--strategy=multi_worker` over the loopback interface)
against one. The speed of sending, BANDWIDTH, and its latency, LATENCY, come from
updates without examples of two other networks, one with few weights and one with many.
Predicted is then: an update without examples, half of what the examples take, and
sending the weights once. 16 views, about 32 examples per update, seconds; the ratio is
of predicted to measured:
"""
_ASSUMED = """## Assumed
"""
_PREDICTED = """## Predicted

Encoding is by shards of `bin/cache.py`, one per accelerator; `tf.distribute` itself
does not share out encoding, its workers wait for the one that holds the lock. Start-up
is what every start of a run reads through: the data, for its fingerprint, and the
encoded views, for their checksums. Input is what updates wait for sampling and reading;
it is 0 where that is hidden behind compute. The latency of the all-reduce is the one
measured above; image files are counted as read through whatever their format. The last
columns name the longest part, which is what breaks first, and what helps.
"""
_TAIL = """## What the tables leave out

Compiling, evaluation, checkpoints and failures; that accelerators wait for the slowest
of them; and the loss of accuracy that fewer updates or larger batches may bring. The
closed form for heads of dense layers is not used on accelerators that round the factors
of matrix products, so the tables count a gradient for each record there.
"""


def main(argv):
    """Prints the page, or writes it."""
    del argv
    if scaling._CORE.value is not None:
        scaling.work()
        return
    text = page()
    print(text)
    if _OUTPUT.value:
        write_text_atomic(Path(_OUTPUT.value), text)
    if scaling._JSON.value:
        write_text_atomic(Path(scaling._JSON.value), json.dumps({"page": text}))


if __name__ == "__main__":
    app.run(main)
