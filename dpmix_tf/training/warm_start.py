"""A warm start: what is trained is first trained on the public pool, not privately.

The pool is public, so this costs no privacy budget, and private training need not spend
its first updates on what the pool could have taught.
"""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from dpmix_tf.data import ArraySource, Dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import network_digest, split_frozen_front
from dpmix_tf.privacy import randomness
from dpmix_tf.training.build import (
    Start,
    build_new_network,
    encoded_if_fixed,
    read_pool,
)
from dpmix_tf.training.private_step import cross_entropy
from dpmix_tf.views import ViewMaker, Views, make_views


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
      None if `warm_start.epochs` is 0.

    Raises:
      DPMixError: a setting is out of range, there is no pool, it holds training images,
        or training diverges.
    """
    settings = config.warm_start
    if settings.epochs == 0:
        return None
    if min(settings.epochs, settings.batch_size) < 1 or not settings.learning_rate > 0:
        raise DPMixError(
            "warm_start needs epochs of 0 or more, a batch_size of 1 or more and a "
            f"learning_rate above 0; received: {settings.to_dict()}."
        )
    pool = read_pool(config, dataset, f"warm_start.epochs = {settings.epochs}")
    network = build_new_network(config, dataset, seed)
    maker = make_views(config.views.to_dict(), pool)
    if not isinstance(maker, ViewMaker):
        raise DPMixError(
            "warm_start needs views of one image at a time; views.microbatch blends "
            "different images. Set one of the two to its default."
        )
    if maker.only_mixed or maker.labels_only:
        maker = dataclasses.replace(maker, only_mixed=False, labels_only=False)
    source = ArraySource(pool.images, pool.labels, pool.class_names)
    views = encoded_if_fixed(config, network, maker, source, cache_dir)
    accuracy = _train(network, views, source, seed, **settings.to_dict())
    logging.info(
        "Warm start: %.1f %% of the pool's views are classified correctly after %d "
        "epochs.",
        100 * accuracy,
        settings.epochs,
    )
    weights = [np.asarray(variable) for variable in network.trainable_variables]
    if not all(np.isfinite(weight).all() for weight in weights):
        raise DPMixError(
            "The warm start diverged. Lower warm_start.learning_rate, which is "
            f"{settings.learning_rate:g}. No privacy budget was spent."
        )
    return Start(weights, {"pool": pool.digest, "network": network_digest(network)})


def _train(
    network: keras.Model,
    views: Views,
    source: ArraySource,
    seed: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> float:
    """Trains as Keras would; returns the accuracy on the views of the last epoch."""
    size, classes = len(source), len(source.class_names)
    batch_size = min(batch_size, size)
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(network.trainable_variables)
    front, head = split_frozen_front(network)
    key = randomness.derive(seed, "warm start")
    random = np.random.default_rng(key.view(np.uint64))

    @tf.function
    def update(images, labels, ids, key):
        records = views.records(
            images,
            tf.one_hot(labels, classes),
            ids,
            seed=key,
            expected_batch_size=batch_size,
        )
        inputs, targets = records.make_views(*records.tensors)
        inputs = tf.reshape(inputs, [-1, *inputs.shape[2:]])
        targets = tf.reshape(targets, [-1, classes])
        if front is not None and not views.encoded:
            inputs = front(inputs, training=False)
        with tf.GradientTape() as tape:
            logits = tf.cast(head(inputs, training=True), tf.float32)
            loss = tf.reduce_mean(cross_entropy(logits, targets))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients)
        right = tf.equal(tf.argmax(logits, 1), tf.argmax(targets, 1))
        return tf.reduce_mean(tf.cast(right, tf.float32))

    accuracies: list[Any] = []
    bar = tqdm(range(epochs), unit="epoch", desc="Warm start", dynamic_ncols=True)
    for epoch in bar:
        order = random.permutation(size)
        # The last batch is filled up with the first images.
        order = np.resize(order, -(-size // batch_size) * batch_size)
        accuracies = []
        for ids in order.reshape(-1, batch_size):
            images, labels = source.read(ids)
            ids = tf.constant(ids, tf.int64)
            this = randomness.fold_in(tf.constant(key), epoch)
            accuracies.append(update(images, labels, ids, this))
    return float(np.mean(accuracies))
