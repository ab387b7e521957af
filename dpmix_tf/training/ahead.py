"""Encodes all views of a config before training, on one machine or on several."""

from pathlib import Path

import keras
from ml_collections import ConfigDict

from dpmix_tf.data import Dataset, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import network_digest, split_frozen_front
from dpmix_tf.training.build import build_new_network, load_pool
from dpmix_tf.training.encoding import encode_source, encode_views
from dpmix_tf.views import FeatureStore, make_views


def encode_ahead(
    config: ConfigDict, cache_dir: str | Path, *, shard: tuple[int, int] = (1, 1)
) -> dict[str, FeatureStore]:
    """Encodes what training with this config would encode, so that it finds it made.

    Args:
      config: see training/config.py.
      cache_dir: see encode_views, as for `shard`.
      shard: the part of each store to make.

    Returns:
      Part of the data -> its store: "training", and "validation" and "test" if training
      evaluates on them.

    Raises:
      DPMixError: the config or its data is invalid, its views are not fixed, or its
        network has no frozen front or a random one.
    """
    dataset = load_dataset(**config.data.to_dict())
    network = _build_frozen(config, dataset)
    dtype = config.run.cache_dtype
    encoded = encode_views(
        network,
        make_views(config.views.to_dict(), load_pool(config, dataset)),
        dataset.train,
        cache_dir=cache_dir,
        dtype=dtype,
        shard=shard,
    )
    stores = {"training": encoded.store}
    others = {"validation": dataset.validation}
    if config.run.test:
        others["test"] = dataset.test
    for part, source in others.items():
        if source is not None:
            features = encode_source(
                network, source, cache_dir=cache_dir, dtype=dtype, shard=shard
            )
            stores[part] = features.store
    return stores


def _build_frozen(config: ConfigDict, dataset: Dataset) -> keras.Model:
    """Builds the network; refuses one whose frozen layers depend on the run's seed."""
    if config.seed is not None:
        return build_new_network(config, dataset, config.seed)
    digests = set()
    for seed in (1, 2):
        network = build_new_network(config, dataset, seed)
        front, _ = split_frozen_front(network)
        digests.add(front and network_digest(front))
    if len(digests) > 1:
        raise DPMixError(
            "The network's frozen layers start from random weights, which each run "
            "draws by its own secret seed: no other run could use what is encoded "
            "here. Train without encoding first, or give the frozen layers weights "
            "(network.weights)."
        )
    return network
