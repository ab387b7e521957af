r"""The same private update in dpmix_tf, Opacus, jax_privacy and TensorFlow Privacy.

  python benchmarks/peers.py --install   # environments of their own, 4 GB, once
  python benchmarks/peers.py

WRN-16-4 with the same weights, on the same 8 x 16 views of 32x32: one gradient an
example (the mean over its views), clipped, added up, noise, SGD. Each library runs in
its own process and environment, all wait while one works, and they take turns. The
clipped sums' norms must agree to a thousandth before anything is timed. "Plain" is the
same framework's own non-private step on the same 128 images.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from peer_workers import worker

from dpmix_tf.files import write_text_atomic
from dpmix_tf.models import wide_resnet

HERE = Path(__file__).parent / "peer_workers"
PEERS = ("opacus", "jax_privacy", "tensorflow_privacy")

_INSTALL = flags.DEFINE_bool("install", False, "Make the peers' environments.")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Examples in the batch.")
_VIEWS = flags.DEFINE_integer("views", 16, "K.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns each contestant takes.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


def environment(peer):
    """The peer's own interpreter."""
    return HERE / "environments" / peer / "bin" / "python"


def install():
    """Makes the environments that are missing."""
    for peer in PEERS:
        python = environment(peer)
        requirements = HERE / f"requirements-{peer}.txt"
        if not python.exists():
            subprocess.run(
                [sys.executable, "-m", "venv", python.parents[1]], check=True
            )
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, "-r", requirements], check=True)


def make_work(examples, count):
    """Random views, and WRN-16-4's initial weights."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    network = wide_resnet(input_shape=(32, 32, 3), num_classes=10)
    layers = sorted(network.layers, key=worker.number)
    normalisations = [
        layer.get_weights()
        for layer in layers
        if isinstance(layer, keras.layers.GroupNormalization)
    ]
    labels = np.repeat(np.arange(examples) % 10, count).reshape(examples, count)
    kernel, bias = network.layers[-1].get_weights()
    return worker.Work(
        views=random.random((examples, count, 32, 32, 3), np.float32),
        labels=np.eye(10, dtype=np.float32)[labels],
        convolutions=[
            layer.get_weights()[0]
            for layer in layers
            if isinstance(layer, keras.layers.Conv2D)
        ],
        scales=[scale for scale, _ in normalisations],
        offsets=[offset for _, offset in normalisations],
        kernel=kernel,
        bias=bias,
    )


class Worker:
    """A process that takes its turn when asked."""

    def __init__(self, name, python, path):
        self.name = name
        self._log = Path(f"{path}.{name}.log")
        self._process = subprocess.Popen(
            [python, HERE / f"with_{name}.py", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        hello = self._read()
        self.about, self.steps = hello["about"], hello["steps"]

    def ask(self, what):
        """Seconds of a step, or norms of clipped sums."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def check_norms(workers):
    """Prints the clipped sums' norms; refuses libraries that did other work."""
    expected = None
    for one in workers:
        for name, norms in one.ask("norms").items():
            print(f"{name}: " + ", ".join(f"{k} {v:.6f}" for k, v in norms.items()))
            expected = expected or norms
            for part, norm in norms.items():
                if abs(norm / expected[part] - 1) > 1e-3:
                    raise ValueError(f"{name} did not do the same work: {part}.")


def main(argv):
    """Prints a table; a file gets all figures."""
    del argv
    if _INSTALL.value:
        install()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "work.npz")
        worker.save(path, make_work(_EXAMPLES.value, _VIEWS.value))
        workers = [Worker("dpmix_tf", sys.executable, path)]
        for peer in PEERS:
            if environment(peer).exists():
                workers.append(Worker(peer, environment(peer), path))
            else:
                print(f"{peer} is not installed: run with --install first.")
        print("Norms of the clipped sums:")
        check_norms(workers)
        contestants = [(one, step) for one in workers for step in one.steps]
        seconds = {contestant: [] for contestant in contestants}
        for turn in range(_REPEATS.value + 1):  # the first one compiles
            for one, step in contestants:
                took = one.ask(step)
                if turn:
                    seconds[one, step].append(took)
        for one in workers:
            one.close()
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    own = medians[workers[0], "dpmix_tf"]
    print("\n| | private, s | its own plain step, s | ratio | times dpmix_tf |")
    print("|---|---|---|---|---|")
    results = []
    for (one, step), median in medians.items():
        if step == "plain":
            continue
        plain = medians[one, "plain"]
        low, high = min(seconds[one, step]), max(seconds[one, step])
        print(
            f"| {step} ({one.about}) | {median:.2f} ({low:.2f}-{high:.2f}) "
            f"| {plain:.2f} | {median / plain:.2f} | {median / own:.1f} |"
        )
        results.append(
            {
                "step": step,
                "about": one.about,
                "private_seconds": seconds[one, step],
                "plain_seconds": seconds[one, "plain"],
                "examples_per_second": _EXAMPLES.value / median,
            }
        )
    if _JSON.value:
        write_text_atomic(Path(_JSON.value), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
