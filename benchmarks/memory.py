r"""Peak memory of a private update: it depends on the chunk and not on the batch.

  python benchmarks/memory.py
  python benchmarks/memory.py --networks=wide_resnet_16_4 --batches=128,1024

Each row is a process of its own that makes one update through fit, with K = 34 views
made inside, on a Poisson batch of the expected size; its peak is the operating system's
account of it (getrusage, maximum resident set). "Start" is the peak once everything is
built, before the update: TensorFlow alone takes most of it.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from networks import NETWORKS

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import DPMixModel

_NETWORKS = flags.DEFINE_list(
    "networks", ["convnet", "wide_resnet_16_1"], "Which networks."
)
_BATCHES = flags.DEFINE_list("batches", ["128", "4096"], "Expected batch sizes.")
_ONE = flags.DEFINE_string("one", None, "Measure this network here: name,batch.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

VIEWS = 34


def peak():
    """Most memory that this process has held so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(name, batch):
    """Peaks before and after one update."""
    network = NETWORKS[name]()
    shape = network.input_shape[1:]
    random = np.random.default_rng(0)
    count = 4 * batch
    source = ArraySource(
        random.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 10
    )
    plan = PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-6,
        num_examples=count,
        expected_batch_size=batch,
        updates=1,
    )
    maker = views.dp_mix_self(augment="crop_flip", padding=shape[0] // 8)
    assert maker.views_per_example == VIEWS
    model = DPMixModel(network, plan=plan, views=maker)
    model.compile(keras.optimizers.SGD(1e-6))
    before = peak()
    model.fit(PoissonBatches(source, plan, seed=1), verbose=0)
    assert model.updates == 1
    return {"network": name, "batch": batch, "start_mb": before, "peak_mb": peak()}


def main(argv):
    """Prints a table; a file gets all figures."""
    if _ONE.value:
        name, batch = _ONE.value.split(",")
        print(json.dumps(measure(name, int(batch))))
        return
    results = []
    print(
        f"| network | expected batch, x {VIEWS} views | start, MB | peak, MB | ratio |"
    )
    print("|---|---|---|---|---|")
    for name in _NETWORKS.value:
        first = None
        for batch in _BATCHES.value:
            done = subprocess.run(
                [sys.executable, argv[0], f"--one={name},{batch}"],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            result = json.loads(done.stdout)
            first = first or result["peak_mb"]
            result["ratio"] = result["peak_mb"] / first
            print(
                f"| {name} | {batch} | {result['start_mb']:.0f} "
                f"| {result['peak_mb']:.0f} | {result['ratio']:.2f} |",
                flush=True,
            )
            results.append(result)
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
