r"""One process on one core against two workers on one core each.

  python benchmarks/scaling.py

The workers form a tf.distribute cluster over the loopback interface. All train the same
network on the same Poisson batches by bin/train.py's means (fit under a strategy), and
take turns: while the pair makes an update the single process waits, and the other way
round. What the pair sends in an update is read off the interface's byte counter.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from dpmix_tf.files import write_text_atomic

_NETWORK = flags.DEFINE_string("network", "wide_resnet_16_4", "Which network.")
_BATCH = flags.DEFINE_float("batch", 32, "Expected batch size, x 16 views.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Updates timed.")
_CORE = flags.DEFINE_integer("core", None, "Work here, on this core, when asked.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


def work():
    """Trains; each update waits for a line and answers with its seconds."""
    os.sched_setaffinity(0, {_CORE.value})  # before TensorFlow counts the cores
    import keras
    import numpy as np
    from networks import NETWORKS

    from dpmix_tf import views
    from dpmix_tf.data import ArraySource, PoissonBatches
    from dpmix_tf.privacy import PrivacyPlan
    from dpmix_tf.training import DPMixModel, make_strategy

    strategy = make_strategy("multi_worker" if "TF_CONFIG" in os.environ else "none")
    random = np.random.default_rng(0)
    count = max(64, round(8 * _BATCH.value))
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    plan = PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-6,
        num_examples=count,
        expected_batch_size=_BATCH.value,
        updates=_REPEATS.value + 1,
    )
    with strategy.scope():
        network = NETWORKS[_NETWORK.value]()
        maker = views.self_aug(augment="crop_flip")
        model = DPMixModel(network, plan=plan, views=maker, seed=1)
        model.compile(keras.optimizers.SGD(1e-6))
    batches = PoissonBatches(ArraySource(images, np.arange(count) % 10), plan, seed=1)

    class Turns(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            print(time.perf_counter() - self.started, flush=True)

    print(network.count_params(), flush=True)
    model.fit(batches, verbose=0, callbacks=[Turns()])


def start(cores, *more):
    """Starts one process a core, with more flags; several form a cluster."""
    sockets = [socket.create_server(("localhost", 0)) for _ in cores]
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes = []
    for index, core in enumerate(cores):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        if len(cores) > 1:
            task = {"type": "worker", "index": index}
            cluster = {"worker": addresses}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        processes.append(
            subprocess.Popen(
                [sys.executable, *sys.argv, *more, f"--core={core}"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    return processes


def loopback_bytes():
    """Bytes that the loopback interface has carried since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("No interface lo in /proc/net/dev.")


def answers(processes):
    """A number from each process."""
    return [float(process.stdout.readline()) for process in processes]


def turn(processes):
    """Seconds of one update: the slowest process's."""
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return max(answers(processes))


def main(argv):
    """Prints a table; a file gets all figures."""
    del argv
    if _CORE.value is not None:
        work()
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    one, two = start(cores[:1]), start(cores)
    parameters = int(answers(one)[0])
    answers(two)
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    sent = []
    for repeat in range(_REPEATS.value + 1):
        took = turn(one)
        before = loopback_bytes()
        took_two = turn(two)
        if repeat:  # the first update is traced
            sent.append(loopback_bytes() - before)
            seconds["one"].append(took)
            seconds["two"].append(took_two)
    for process in one + two:
        process.stdin.close()
        process.wait()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    carried = statistics.median(sent)
    print("| processes, one core each | update, s | of one process |")
    print("|---|---|---|")
    for name, values in seconds.items():
        low, high = min(values), max(values)
        share = medians[name] / medians["one"]
        print(f"| {name} | {medians[name]:.2f} ({low:.2f}-{high:.2f}) | {share:.2f} |")
    print(
        f"\nThe two workers sent {carried / 1e6:.1f} MB an update over the loopback "
        f"interface: {carried / 2 / (4 * parameters):.2f} times the {parameters:,} "
        "float32 parameters, each."
    )
    if _JSON.value:
        figures = {
            "network": _NETWORK.value,
            "batch": _BATCH.value,
            "parameters": parameters,
            "seconds": seconds,
            "bytes": sent,
        }
        write_text_atomic(Path(_JSON.value), json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
