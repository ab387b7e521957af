"""A warm start: what is trained is first trained on the public pool, not privately.

The pool is public, so this costs no privacy budget, and private training need not spend
its first updates on what the pool could have taught.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dpmix_tf.data import ArraySource, Dataset, describe_settings
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models import network_digest, split_frozen_front
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training.build import (
    Start,
    build_new_network,
    encoded_if_fixed,
    pin_weights,
    read_pool,
)
from dpmix_tf.training.pool_training import POOL, Epochs, pool_views, train_on_pool


def warm_start(
    config: ConfigDict, dataset: Dataset, seed: int, cache_dir: str | Path | None = None
) -> Start | None:
    """Trains the network that a config describes on its pool.

    The same seed, pool and machine give the same weights.

    Args:
      config: see training/config.py; its `warm_start` says for how long.
      dataset: what will be trained on privately; only its classes and the shape of its
        images matter, and that none of its images is in the pool.
      seed: secret; initial weights and the order of the images derive from it.
      cache_dir: see build_model.

    Returns:
      None if `warm_start.epochs` is 0; what `pretrain` made if there is a
      `warm_start.path`.

    Raises:
      DPMixError: a setting is out of range, there is no pool, it holds training images,
        or training diverges; or what `path` names is of another pool or network.
    """
    settings = config.warm_start
    if settings.path is None and settings.epochs == 0:
        return None
    if dataset.task == MULTI_LABEL:
        raise DPMixError(
            "A pool's images have one class each, and these have several labels: a "
            "warm start would teach another task. Set warm_start.epochs=0 and "
            "warm_start.path=None."
        )
    if settings.path is not None:
        return _pretrained(config, dataset)
    pool = read_pool(config, dataset, f"warm_start.epochs = {settings.epochs}")
    maker = pool_views(config, pool)
    network = build_new_network(config, dataset, seed)
    source = ArraySource(pool.images, pool.labels, pool.class_names)
    views = encoded_if_fixed(config, network, maker, source, cache_dir)
    train_on_pool(config, network, views, source, seed)
    return Start(
        [np.asarray(variable) for variable in network.trainable_variables],
        {"pool": pool.digest, "network": network_digest(network)},
    )


def pretrain(config: ConfigDict, folder: str | Path) -> float | None:
    """Trains a whole network on its pool, ahead of private training.

    No private example is read, so it can be done elsewhere. Stopped anywhere, the same
    call goes on at the next epoch and ends with the same weights, except for rounding
    on another machine. Train with `warm_start.path` set to the folder.

    Args:
      config: see training/config.py.
      folder: is created; it keeps the two newest epochs.

    Returns:
      The accuracy on the views of the last epoch, in [0, 1]; None if there was nothing
      left to do.

    Raises:
      DPMixError: as warm_start; or the network has a frozen front, or the folder was
        made with other settings.
    """
    if config.pool.path is None:
        raise DPMixError(
            "Pretraining needs pool.path: a folder made by bin/generate_pool.py."
        )
    if config.warm_start.epochs == 0:
        raise DPMixError("Pretraining needs warm_start.epochs of 1 or more.")
    classes, shape = describe_settings(config.data)
    pool = SyntheticPool.load(config.pool.path, class_names=classes, image_shape=shape)
    maker = pool_views(config, pool)
    source = ArraySource(pool.images, pool.labels, pool.class_names)
    network = build_new_network(
        config, Dataset(train=source, validation=None, test=source), 0
    )
    if split_frozen_front(network)[0] is not None:
        raise DPMixError(
            "The network has a frozen front, so what is trained of it is trained on "
            "the pool in little time: set warm_start.epochs and train."
        )
    epochs = Epochs(local_path(folder, "--output"), _facts(config, pool))
    return train_on_pool(config, network, maker, source, 0, epochs)


def _pretrained(config: ConfigDict, dataset: Dataset) -> Start:
    """What `pretrain` has written."""
    path = config.warm_start.path
    if config.warm_start.epochs:
        raise DPMixError(
            f"warm_start.path = {path} names weights that are trained on the pool; "
            f"warm_start.epochs = {config.warm_start.epochs} would train them again. "
            "Give one of the two."
        )
    pool = read_pool(config, dataset, f"warm_start.path = {path}")
    epochs = Epochs(local_path(path, "warm_start.path"), _facts(config, pool))
    return epochs.finished()


def _facts(config: ConfigDict, pool: SyntheticPool) -> dict[str, Any]:
    """What must be the same in pretraining and in the training that starts from it."""
    facts = {POOL: pool.digest, "network": pin_weights(config).network.to_dict()}
    return json.loads(json.dumps(facts))  # as they are read
