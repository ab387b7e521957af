"""tf.distribute: one process, several devices, or several machines."""

import contextlib
import json
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data import PoissonBatches
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


def share_out(
    strategy: tf.distribute.Strategy, batches: PoissonBatches, start: Callable[[], int]
):
    """Returns this process's part of the batches: data that Keras's fit takes.

    Args:
      strategy: whose replicas each get a part of every batch.
      batches: the same in all processes.
      start: called whenever the data is iterated over, returns the first update.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches.dataset(start=start)

    def part(context):
        each = replicas // context.num_input_pipelines
        first = each * context.input_pipeline_id
        return batches.dataset(
            replicas=range(first, first + each), num_replicas=replicas, start=start
        )

    return strategy.distribute_datasets_from_function(part)


def seed_from_chief(strategy: tf.distribute.Strategy, seed: Seed) -> Seed:
    """Returns the chief's 128-bit seed in every process."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, 128, 32)]
    words = from_chief(strategy, np.array(words, np.int64))
    value = sum(int(word) << 32 * place for place, word in enumerate(words))
    return Seed(value, seed.origin)


def leave_gradients_as_they_are(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps a Keras optimizer from adding up the replicas' gradients.

    They are equal already, noise included. Adding up what is not yet noisy is no way
    out: the optimizer's own clipping, if any, would come before the noise.
    """
    if hasattr(optimizer, "inner"):
        leave_gradients_as_they_are(optimizer.inner)
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise DPMixError(
            f"Keras {keras.__version__} adds gradients up over replicas in a way that "
            "dpmix_tf does not know: the noise would be wrong. Use one replica, or a "
            "Keras version that requirements.txt allows."
        )
    optimizer._all_reduce_sum_gradients = lambda gradients: gradients
