"""tf.distribute: one process, several devices, or several machines."""

import contextlib
import json
import os

import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.randomness import Seed

STRATEGIES = ("none", "mirrored", "multi_worker")


@contextlib.contextmanager
def lost_workers_reported(strategy: tf.distribute.Strategy):
    """Says what to do when a worker is gone, in the words of DPMixError."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if num_workers(strategy) == 1:
            raise
        raise DPMixError(
            "A worker was lost, and with it the update under way. Start all workers "
            "again, this or another number of them: training resumes from the last "
            "checkpoint, and updates that are repeated draw the same examples and "
            f"noise. TensorFlow said: {error.message[:300]}"
        ) from error


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Makes a tf.distribute strategy; before anything else is done with TensorFlow.

    Args:
      name: "none"; "mirrored", all devices of this machine; "multi_worker", the
        machines that the environment variable TF_CONFIG lists, where the same command
        is run on each.

    Raises:
      DPMixError: unknown name, or TF_CONFIG is missing or not understood.
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
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DPMixError(
            "strategy multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": '
            f'"worker", "index": 0}}}}; received: {described!r}.'
        ) from error
    if here not in workers:
        raise DPMixError(
            f"TF_CONFIG describes a task that trains nothing: {config['task']}. "
            'Expected type "chief" or "worker".'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


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
    """Returns the chief's `value` in every process; all must call it, in step.

    Args:
      strategy: the strategy.
      value: int64 or float32, of the same shape everywhere.
    """
    if num_workers(strategy) == 1:
        return value
    with strategy.scope():  # the first worker's initial value is sent to the others
        return tf.Variable(value, trainable=False).numpy()


def seed_from_chief(strategy: tf.distribute.Strategy, seed: Seed) -> Seed:
    """Returns the chief's 128-bit seed in every process."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, 128, 32)]
    words = from_chief(strategy, np.array(words, np.int64))
    value = sum(int(word) << 32 * place for place, word in enumerate(words))
    return Seed(value, seed.origin)
