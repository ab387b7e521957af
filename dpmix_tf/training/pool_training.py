"""Training on a pool of public images, not privately; its epochs can be resumed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from dpmix_tf.data import ExampleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import cannot_write
from dpmix_tf.models import network_digest, split_frozen_front
from dpmix_tf.privacy import randomness
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import checkpoints
from dpmix_tf.training.build import Start
from dpmix_tf.training.losses import cross_entropy
from dpmix_tf.training.workdir import differences
from dpmix_tf.views import ViewMaker, Views, make_views

POOL = "SHA-256 of the pool"


def pool_views(config: ConfigDict, pool: SyntheticPool) -> ViewMaker:
    """Returns the maker of the pool's views.

    Raises:
      DPMixError: a setting of `config.warm_start` is out of range, or the views blend
        different images.
    """
    settings = config.warm_start
    if min(settings.epochs, settings.batch_size) < 1 or not settings.learning_rate > 0:
        raise DPMixError(
            "warm_start needs epochs of 0 or more, a batch_size of 1 or more and a "
            f"learning_rate above 0; received: {settings.to_dict()}."
        )
    maker = make_views(config.views.to_dict(), pool)
    if not isinstance(maker, ViewMaker):
        raise DPMixError(
            "warm_start needs views of one image at a time; views.microbatch blends "
            "different images. Set one of the two to its default."
        )
    if maker.only_mixed or maker.labels_only:
        # These ask what private training loses by them, not what the pool does.
        maker = dataclasses.replace(maker, only_mixed=False, labels_only=False)
    return maker


class Epochs:
    """A folder of pretraining's epochs, as checkpoints that hold no secret.

    Args:
      folder: is created with the first epoch.
      facts: what must be the same in all that use it: POOL, the digest, and the
        network's settings.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.folder, self._facts = folder, facts

    def _load(self):
        found = checkpoints.load_latest(self.folder)
        lines = differences(found[1]["facts"], self._facts) if found else []
        if lines:
            raise DPMixError(
                f"{self.folder} was pretrained with other settings: "
                + "; ".join(lines)
                + ". Use another folder, or the same settings."
            )
        return found

    def resume(self, network: keras.Model, variables, settings: dict[str, Any]) -> int:
        """Restores the last epoch; returns how many were made."""
        found = self._load()
        if found is None:
            return 0
        arrays, metadata = found
        if metadata["settings"] != settings:
            raise DPMixError(
                f"{self.folder} was pretrained with {metadata['settings']}; received: "
                f"{settings}. Use another folder, or the same settings."
            )
        for index, variable in enumerate([*network.trainable_variables, *variables]):
            variable.assign(arrays[str(index)])
        return metadata["updates"]

    def keep(
        self, network: keras.Model, variables, settings: dict[str, Any], made: int
    ) -> None:
        """Writes an epoch."""
        kept = [*network.trainable_variables, *variables]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        checkpoints.save(
            self.folder,
            {str(index): np.asarray(variable) for index, variable in enumerate(kept)},
            {
                "updates": made,
                "facts": self._facts,
                "settings": settings,
                "trained": len(network.trainable_variables),
                "network": network_digest(network),
            },
        )
        checkpoints.prune(self.folder, 2)

    def finished(self) -> Start:
        """The weights of the last epoch, if all were made."""
        found = self._load()
        if found is None or found[1]["updates"] < found[1]["settings"]["epochs"]:
            raise DPMixError(
                f"{self.folder} holds no finished pretraining. Make it with "
                "bin/pretrain.py --output; the same command resumes it."
            )
        arrays, metadata = found
        weights = [arrays[str(index)] for index in range(metadata["trained"])]
        record = {"pool": self._facts[POOL], "network": metadata["network"]}
        return Start(weights, record)


def train_on_pool(
    config: ConfigDict,
    network: keras.Model,
    views: Views,
    source: ExampleSource,
    seed: int,
    epochs: Epochs | None = None,
) -> float | None:
    """Trains what is trainable of a network, as Keras would.

    Args:
      config: see training/config.py; its `warm_start` says for how long.
      network: images -> logits; is changed.
      views: of the pool's images, perhaps encoded.
      source: these images.
      seed: the order of the images and their views derive from it.
      epochs: where epochs are kept, and resumed from; by default nowhere.

    Returns:
      The accuracy on the views of the last epoch, in [0, 1]; None if there was nothing
      left to do.

    Raises:
      DPMixError: training diverges, or an epoch cannot be written.
    """
    settings = {
        name: config.warm_start[name]
        for name in ("epochs", "batch_size", "learning_rate")
    }
    size = len(source)
    batch_size = min(settings["batch_size"], size)
    optimizer = keras.optimizers.Adam(settings["learning_rate"])
    optimizer.build(network.trainable_variables)
    update = _update(network, views, optimizer, batch_size, len(source.class_names))
    key = randomness.derive(seed, "warm start")
    kept = (network, optimizer.variables, settings)
    made = epochs.resume(*kept) if epochs else 0
    accuracies: list[Any] = []
    bar = tqdm(
        range(made, settings["epochs"]),
        initial=made,
        total=settings["epochs"],
        unit="epoch",
        desc="Warm start",
        dynamic_ncols=True,
    )
    for epoch in bar:
        order = np.random.default_rng([*key.view(np.uint64), epoch]).permutation(size)
        # The last batch is filled up with the first images.
        order = np.resize(order, -(-size // batch_size) * batch_size)
        accuracies = []
        for ids in order.reshape(-1, batch_size):
            images, labels = source.read(ids)
            ids = tf.constant(ids, tf.int64)
            this = randomness.fold_in(tf.constant(key), epoch)
            accuracies.append(update(images, labels, ids, this))
        _refuse_divergence(network, settings["learning_rate"])
        if epochs:
            epochs.keep(*kept, epoch + 1)
    if not accuracies:
        return None
    accuracy = float(np.mean(accuracies))
    logging.info(
        "Warm start: %.1f %% of the pool's views are classified correctly after %d "
        "epochs.",
        100 * accuracy,
        settings["epochs"],
    )
    return accuracy


def _refuse_divergence(network: keras.Model, learning_rate: float) -> None:
    if not all(np.isfinite(weight).all() for weight in network.trainable_variables):
        raise DPMixError(
            "The warm start diverged. Lower warm_start.learning_rate, which is "
            f"{learning_rate:g}. No privacy budget was spent."
        )


def _update(
    network: keras.Model,
    views: Views,
    optimizer: keras.Optimizer,
    batch_size: int,
    classes: int,
) -> Callable[..., tf.Tensor]:
    """Returns (images, labels, ids, key) -> accuracy, which makes one update."""
    front, head = split_frozen_front(network)

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

    return update
