"""Training with tf.distribute: one process, several devices, or several machines."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from dpmix_tf.data import PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import without_place
from dpmix_tf.privacy.randomness import Seed, as_seed
from dpmix_tf.values import flatten

STRATEGIES = ("none", "mirrored", "multi_worker")

# In seconds: between two attempts to reach the missing workers, until an attempt counts
# as failed, and between two messages that name them.
_RETRY, _PATIENCE, _REMIND = 0.5, 2.0, 60.0


@contextlib.contextmanager
def lost_workers_reported(strategy: tf.distribute.Strategy):
    """Turns the loss of a worker into a DPMixError that says what to do."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if num_workers(strategy) == 1:
            raise
        raise DPMixError(
            "A worker was lost, and with it the update in progress. Restart all "
            "workers, with the same or a different number of them: training resumes "
            "from the last checkpoint, and repeated updates draw the same examples and "
            f"noise. TensorFlow said: {error.message[:300]}"
        ) from error


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Makes a tf.distribute strategy; call it before anything else in TensorFlow.

    Args:
      name: "none"; "mirrored", all devices of this machine; or "multi_worker", the
        machines listed in the environment variable TF_CONFIG, each of which runs the
        same command.

    Raises:
      DPMixError: the name is unknown, TF_CONFIG is missing or invalid, or this worker's
        port is taken.
      KeyboardInterrupt: stopped by SIGINT or SIGTERM while waiting for other workers.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name != "multi_worker":
        raise DPMixError(
            f"strategy must be one of {', '.join(STRATEGIES)}; received: {name!r}."
        )
    described = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(described or "")
        workers = [
            address
            for kind in ("chief", "worker")
            for address in config["cluster"].get(kind, [])
        ]
        here = config["cluster"][config["task"]["type"]][config["task"]["index"]]
        places = {address: _host_and_port(address) for address in workers}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DPMixError(
            "strategy multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": '
            f'"worker", "index": 0}}}}; received: {described!r}.'
        ) from error
    if here not in workers:
        raise DPMixError(
            f"TF_CONFIG describes a task that does not train: {config['task']}. "
            'Expected type "chief" or "worker".'
        )
    _wait_for_workers(places, here)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _wait_for_workers(places: Mapping[str, tuple[str, int]], here: str) -> None:
    """Returns once every other worker can be reached, and reports who is missing.

    TensorFlow waits for them too, but for eleven minutes, silently and ignoring
    signals. Each worker listens at its own address until it has reached all others. A
    worker that comes later, or tries again, finds TensorFlow's own server there.
    """
    others = [address for address in places if address != here]
    if not others:
        return
    started, due = time.monotonic(), 0.0
    named = ", ".join(others)
    try:
        with _listening(here, places[here][1]), _sigterm_as_sigint():
            while others:
                reasons = {address: _unreachable(places[address]) for address in others}
                others = [address for address in others if reasons[address]]
                named = ", ".join(f"{each} ({reasons[each]})" for each in others)
                waited = time.monotonic() - started
                if others and waited >= due:
                    print(
                        f"Waiting for workers: {named}; {waited:.0f} s so far. Start "
                        "the same command there, or stop this one with Ctrl-C.",
                        file=sys.stderr,
                        flush=True,
                    )
                    due = waited + _REMIND
                if others:
                    time.sleep(_RETRY)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped while waiting for workers: {named}. Nothing was written or spent."
        ) from None


def _unreachable(place: tuple[str, int]) -> str | None:
    """Returns why nothing answers there, or None if something does."""
    try:
        socket.create_connection(place, timeout=_PATIENCE).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


@contextlib.contextmanager
def _listening(address: str, port: int):
    """Lets others reach this worker's port before TensorFlow listens there."""
    ipv6 = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6,
            backlog=socket.SOMAXCONN,  # no connection is ever accepted
        )
    except (OSError, OverflowError) as error:
        raise DPMixError(
            f"This worker cannot listen at {address}, its address in TF_CONFIG: "
            f"{error}. Stop whatever is listening there, such as an earlier run, or "
            "use another port in every worker's TF_CONFIG."
        ) from error
    with server:
        yield


@contextlib.contextmanager
def _sigterm_as_sigint():
    """Makes SIGTERM raise KeyboardInterrupt in the main thread, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns how many processes train together."""
    resolver = strategy.cluster_resolver
    if resolver is None:
        return 1
    cluster = resolver.cluster_spec().as_dict()
    return max(1, len(cluster.get("chief", [])) + len(cluster.get("worker", [])))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files: the chief, or the first worker."""
    if num_workers(strategy) == 1:
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().as_dict():
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def from_chief(strategy: tf.distribute.Strategy, value: np.ndarray) -> np.ndarray:
    """Returns the chief's `value` in every process; all must call it together.

    Args:
      strategy: the strategy.
      value: int64 or float32, of the same shape everywhere.
    """
    if num_workers(strategy) == 1:
        return value
    with strategy.scope():  # the first worker's initial value is sent to the others
        return tf.Variable(value, trainable=False).numpy()


def share_out(
    strategy: tf.distribute.Strategy,
    batches: PoissonBatches,
    start: Callable[[], int],
    *,
    ids_only: bool = False,
):
    """Returns this process's part of the batches, as data that Keras's fit takes.

    Args:
      strategy: each of its replicas gets a part of every batch.
      batches: the same in all processes.
      start: called whenever an iteration over the data begins; returns the number of
        its first update.
      ids_only: see PoissonBatches.dataset.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches.dataset(start=start, ids_only=ids_only)

    def part(context):
        each = replicas // context.num_input_pipelines
        first = each * context.input_pipeline_id
        return batches.dataset(
            replicas=range(first, first + each),
            num_replicas=replicas,
            start=start,
            ids_only=ids_only,
        )

    return strategy.distribute_datasets_from_function(part)


def seed_from_chief(strategy: tf.distribute.Strategy, seed: int) -> Seed:
    """Returns the chief's 128-bit seed in every process."""
    seed = as_seed(seed)
    own = [seed >> shift & 0xFFFFFFFF for shift in range(0, 128, 32)]
    words = from_chief(strategy, np.array(own, np.int64))
    value = sum(int(word) << 32 * place for place, word in enumerate(words))
    return Seed(value, seed.origin)


def texts_of_workers(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """Returns every worker's `text` in every process; all must call it together.

    Args:
      strategy: the strategy.
      text: each worker's own, of any length, without null characters.

    Returns:
      At least one text per worker; more copies if a worker has several replicas.
    """
    if num_workers(strategy) == 1:
        return [text]
    code = np.frombuffer(text.encode() + b"\0", np.uint8).astype(np.int64)

    def gather():
        return tf.distribute.get_replica_context().all_gather(code, axis=0)

    gathered = tf.function(lambda: strategy.run(gather))()
    joined = strategy.experimental_local_results(gathered)[0].numpy()
    return joined.astype(np.uint8).tobytes().decode().split("\0")[:-1]


def text_from_chief(strategy: tf.distribute.Strategy, text: str) -> str:
    """Returns the chief's `text` in every process; all must call it together."""
    mark = "chief:" if is_chief(strategy) else "other:"
    told = texts_of_workers(strategy, mark + text)
    return next(each for each in told if each.startswith("chief:"))[len(mark) :]


def shared_facts(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Returns the facts of a config on which all workers must agree.

    They are for refuse_different_workers. Left out are `run` and `card`, which may
    differ between workers; the seed, which is secret and comes from the first worker;
    and file locations, which may differ because files are compared by content.

    Args:
      config: see training/config.py, after `pin_weights`.
      **more: further JSON-able facts.
    """
    facts = json.loads(config.to_json())
    del facts["run"], facts["card"], facts["seed"], facts["pool"]
    del facts["data"]["data_dir"]
    facts["data"].pop("table", None)
    network = without_place(facts.pop("network"))
    network.pop("text_embeddings", None)  # initial weights are the first worker's
    return facts | {"network": network} | more


def refuse_different_workers(
    strategy: tf.distribute.Strategy, facts: Mapping[str, Any]
) -> None:
    """Refuses to train if any worker's facts differ from the first worker's.

    Each worker clips its own examples' gradients, and the first one's plan says what
    the sum of all of them costs. All workers must call it together, and all are told of
    a difference.

    Args:
      strategy: the strategy.
      facts: JSON-able, nested; nothing secret.

    Raises:
      DPMixError: something differs; raised in every worker, it names what.
    """
    own = {"chief": is_chief(strategy), "address": _address(strategy)}
    told = [
        json.loads(text)
        for text in texts_of_workers(strategy, json.dumps(own | {"facts": facts}))
    ]
    expected = next(flatten(worker["facts"]) for worker in told if worker["chief"])
    lines = []
    for worker in told:
        found = flatten(worker["facts"])
        for name in sorted(expected.keys() | found.keys()):
            first, other = (
                json.dumps(each[name]) if name in each else "nothing"
                for each in (expected, found)
            )
            line = f"  {name}: {first} at the first worker, {other} at "
            line += worker["address"]
            if first != other and line not in lines:
                lines.append(line)
    if lines:
        raise DPMixError(
            "The workers' settings differ:\n" + "\n".join(lines) + "\nRun the "
            "same command on all of them, on the same files with the same software. "
            "Nothing was spent."
        )


def _address(strategy: tf.distribute.Strategy) -> str:
    resolver = strategy.cluster_resolver
    if resolver is None:
        return "this process"
    cluster = resolver.cluster_spec()
    return cluster.task_address(resolver.task_type, resolver.task_id)
