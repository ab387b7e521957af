"""Makes the features of fixed views once: (network, views, source) -> store."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from dpmix_tf.data import ExampleSource
from dpmix_tf.data.sources import check_labels, label_spec, load_ahead
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import count_activations, network_digest, split_frozen_front
from dpmix_tf.privacy import randomness
from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL
from dpmix_tf.training.software import package_versions
from dpmix_tf.views import (
    EncodedViews,
    FeatureStore,
    Layout,
    ViewMaker,
    Views,
    to_pairs,
)
from dpmix_tf.views.store import DTYPES

# Numbers that the front's layers emit for the views encoded at a time; beyond, larger
# batches gain no speed.
_NUMBERS_AT_A_TIME = 128_000_000
_VIEWS_AT_A_TIME = 256

# How far features made now may lie from stored ones, relative to the largest: storage
# as float16, encoding in bfloat16, and another machine's order of sums.
_TOLERANCE = 0.05

# Public: which of a person's images make which visit of their fixed views.
_IMAGES_KEY = randomness.derive(0, "people's images")

# Stores that this process has opened, by folder, and the code that was found to make
# what they hold: the next run neither reads all their blocks nor tries them again.
_opened: dict[Path, tuple[FeatureStore, set[Any]]] = {}


def can_encode(views: Views, network: keras.Model) -> TypeGuard[ViewMaker]:
    """Whether `encode_views` applies: the views are fixed, and a front is frozen."""
    fixed = isinstance(views, ViewMaker) and views.visits is not None
    return fixed and split_frozen_front(network)[0] is not None


def encode_source(
    network: keras.Model,
    source: ExampleSource,
    *,
    cache_dir: str | Path,
    dtype: str = "float16",
    shard: tuple[int, int] = (1, 1),
    before_block: Callable[[], None] = lambda: None,
) -> "FeatureSource":
    """Returns a source of the same examples as features, for evaluation.

    Args:
      network: images -> logits, whose first layers are frozen.
      source: examples to evaluate on.
      cache_dir: see encode_views, as for the other arguments.
      dtype: of the features on disk.
      shard: see encode_views.
      before_block: may raise to stop.
    """
    plain = ViewMaker(visits=1)
    encoded = encode_views(
        network,
        plain,
        source,
        cache_dir=cache_dir,
        dtype=dtype,
        shard=shard,
        before_block=before_block,
    )
    return FeatureSource(encoded.store, source.class_names)


class FeatureSource(ExampleSource):
    """The first view of each row of a store, as an "image" of features.

    Attributes:
      store: the store.
    """

    image_dtype = np.dtype(np.float32)
    image_shape: tuple[int, ...]  # type: ignore[assignment]

    def __init__(self, store: FeatureStore, class_names: tuple[str, ...]):
        self.store, self.class_names = store, class_names
        self.task = MULTI_LABEL if store.layout.several else SINGLE_LABEL
        self.image_shape = store.layout.features

    def __len__(self) -> int:
        return self.store.layout.rows

    def read(self, indices):
        """See ExampleSource.read."""
        indices = np.asarray(indices, np.int64)
        features, labels, *_ = self.store.read(indices, np.zeros(len(indices), int))
        features, labels = features[:, 0].astype(np.float32), labels[:, 0]
        return features, labels if self.task == MULTI_LABEL else labels[:, 0]


def encode_views(
    network: keras.Model,
    maker: Views,
    source: ExampleSource,
    *,
    cache_dir: str | Path,
    dtype: str = "float16",
    shard: tuple[int, int] = (1, 1),
    before_block: Callable[[], None] = lambda: None,
) -> EncodedViews:
    """Returns `maker`'s views as features, making those that the cache does not have.

    If interrupted, the same call continues with the next block. Blocks with a wrong
    checksum are made again. Features made from anything else (other examples, views,
    weights, versions) are never used: they have another key, and so another folder.

    Example:
      views = dpmix_tf.views.dp_mix_self(visits=4)
      views = dpmix_tf.encode_views(network, views, source, cache_dir="cache")
      model = dpmix_tf.DPMixModel(network, plan=plan, views=views)

    Args:
      network: images -> logits, whose first layers are frozen.
      maker: the view maker, with `visits` set.
      source: the private examples.
      cache_dir: private; one folder may hold the caches of any number of runs.
      dtype: "float16" or "float32", of the features on disk.
      shard: (i, n) with 1 <= i <= n: make only every n-th block, beginning with the
        i-th, for n processes or machines. The views are complete once all shards are.
      before_block: called before each block; may raise to stop.

    Raises:
      DPMixError: the network has no frozen front, `visits` is not set, the disk is too
        small, the features do not fit `dtype`, or `shard` is out of range.
    """
    front, _ = split_frozen_front(network)
    if front is None:
        raise DPMixError(
            "Views are encoded by the frozen layers before a network's first trained "
            "one, and this network has none. Set visits=None."
        )
    if not isinstance(maker, ViewMaker) or maker.visits is None:
        raise DPMixError(
            "Only fixed views can be encoded ahead of training. Set views.visits to "
            "the number of sets of views per example, such as 1."
        )
    if dtype not in DTYPES:
        raise DPMixError(f"cache_dtype must be one of {DTYPES}, received: {dtype!r}.")
    if not 1 <= shard[0] <= shard[1]:
        raise DPMixError(f"shard must be (i, n) with 1 <= i <= n, received: {shard}.")
    store, known = _open(cache_dir, front, maker, source, dtype)
    mine = range(shard[0] - 1, store.layout.blocks, shard[1])
    encode = _make_encode(front, maker, store.layout)
    code = (type(maker), *map(type, front._flatten_layers()))
    probe: Any = None
    if code not in known and len(mine):
        # Before the lock: what layers create, workers create together.
        probe = encode(*_first_pair(store, mine[0], source))[0].numpy()
    with store.lock(shard):
        missing = store.missing(mine)
        there = probe is not None and mine[0] not in missing
        if there and _is_foreign(store, mine[0], probe):
            logging.warning(
                "Features in %s are of other code: made again.", store.folder
            )
            store.clear(mine)
            missing = list(mine)
        if missing:
            views = max(1, _NUMBERS_AT_A_TIME // (count_activations(front) or 1))
            views = min(views, _VIEWS_AT_A_TIME)
            at_a_time = max(1, views // maker.views_per_example)
            _fill(store, missing, encode, source, at_a_time, before_block)
        known.add(code)
    return EncodedViews(maker=maker, store=store, source=source)


def _open(cache_dir, front, maker, source, dtype) -> tuple[FeatureStore, set[Any]]:
    """The store of these views, and the code that is known to make what it holds."""
    assert maker.visits is not None
    layout = Layout(
        rows=len(source),
        views=(maker.visits, maker.views_per_example),
        features=tuple(int(size) for size in front.output_shape[1:]),
        dtype=dtype,
        classes=len(source.class_names),
        several=source.task == MULTI_LABEL,
    )
    key = {
        "data": source.fingerprint(),
        "encoder": network_digest(front),
        "views": _facts(maker),
        "software": package_versions(),
    }
    store = FeatureStore(cache_dir, key, layout)
    return _opened.setdefault(store.folder.absolute(), (store, set()))


def _facts(maker: ViewMaker) -> dict[str, Any]:
    """What determines a maker's views; a pool counts by its content."""
    facts = {f.name: getattr(maker, f.name) for f in dataclasses.fields(maker)}
    return facts | {"pool": maker.pool.digest if maker.pool else None}


def _make_encode(front: keras.Model, maker: ViewMaker, layout: Layout) -> Callable:
    """Returns a function that makes the features of some examples' visits.

    It takes images [n,H,W,C], labels [n], ids [n] and visits [n], n being static, and
    returns features float32 [n,K,...], and classes and weights of the labels, see
    to_pairs; or several labels as they are.
    """

    def encode(images, labels, ids, visits):
        if not layout.several:
            labels = tf.one_hot(labels, layout.classes)
        views, soft = maker.several(images, labels, maker.fixed_seeds(ids, visits))
        flat = tf.reshape(views, [-1, *views.shape[2:]])
        features = tf.cast(front(flat, training=False), tf.float32)
        shape = [-1, layout.views[1], *layout.features]
        kept = (soft,) if layout.several else to_pairs(soft)
        return tf.reshape(features, shape), *kept

    return encode


def _first_pair(store: FeatureStore, block: int, source: ExampleSource):
    """A block's first record and visit, as `encode` takes them."""
    ids, visits = np.array(store.layout.rows_of(block)[:1], np.int64), np.zeros(1, int)
    images, labels = source.draw(ids, _IMAGES_KEY, visits)
    return [
        tf.constant(part) for part in (images, labels, ids, visits.astype(np.int32))
    ]


def _is_foreign(store: FeatureStore, block: int, first: np.ndarray) -> bool:
    """Whether a block's first features differ from what this code makes of them.

    The key holds versions, and not what a developer changed between two of them.
    """
    row = np.array(store.layout.rows_of(block)[:1])
    stored = store.read(row, np.zeros(1, int))[0].astype(np.float32)
    return bool(np.abs(first - stored).max() > _TOLERANCE * np.abs(stored).max())


def _fill(store, blocks, encode, source, at_a_time, before_block) -> None:
    """Makes the given blocks, with a progress bar.

    Args:
      store: the store to fill.
      blocks: numbers of its blocks.
      encode: see _make_encode.
      source: the examples.
      at_a_time: pairs (example, visit) given to `encode` together.
      before_block: called before each block.
    """
    _check_space(store, blocks)
    layout, (visits, count) = store.layout, store.layout.views
    batches = iter(_read_ahead(source, layout, blocks, at_a_time))
    encode = tf.function(encode, autograph=False)
    rows = sum(len(layout.rows_of(block)) for block in blocks)
    bar = tqdm(
        total=rows * visits * count, unit="view", desc="Encoding", dynamic_ncols=True,
        mininterval=0.5 if os.isatty(2) else 30, unit_scale=True,
    )  # fmt: skip
    with bar:
        for block in blocks:
            before_block()
            made: list[list[np.ndarray]] = [[] for _ in layout.parts]
            pairs = len(layout.rows_of(block)) * visits
            for first in range(0, pairs, at_a_time):
                number = min(at_a_time, pairs - first)
                for kept, part in zip(made, encode(*next(batches)), strict=True):
                    kept.append(part.numpy()[:number])
                bar.update(number * count)
            shaped = (np.concatenate(parts) for parts in made)
            store.write(block, *(p.reshape(-1, visits, *p.shape[1:]) for p in shaped))


def _read_ahead(
    source: ExampleSource, layout: Layout, blocks: list[int], at_a_time: int
) -> tf.data.Dataset:
    """Reads the blocks' (images, labels, ids, visits), in order, while others encode.

    All have `at_a_time` rows; the last of a block repeats its last row.
    """
    visits = layout.views[0]
    starts = [
        (block, first)
        for block in blocks
        for first in range(0, len(layout.rows_of(block)) * visits, at_a_time)
    ]

    def load(place):
        block, first = starts[int(place)]
        rows = layout.rows_of(block)
        pairs = np.arange(first, first + at_a_time).clip(max=len(rows) * visits - 1)
        ids = rows.start + pairs // visits
        turns = pairs % visits
        images, labels = source.draw(ids, _IMAGES_KEY, turns)
        check_labels(labels, layout.classes)
        return images, labels, ids, turns.astype(np.int32)

    slots = () if source.slots is None else (source.slots,)
    specs = (
        tf.TensorSpec([at_a_time, *slots, *source.image_shape], source.image_dtype),
        label_spec(source, [at_a_time, *slots]),
        tf.TensorSpec([at_a_time], tf.int64),
        tf.TensorSpec([at_a_time], tf.int32),
    )
    return load_ahead(tf.data.Dataset.range(len(starts)), load, specs)


def _check_space(store: FeatureStore, blocks: list[int]) -> None:
    rows = sum(len(store.layout.rows_of(block)) for block in blocks)
    needed = rows * store.layout.row_type.itemsize
    free = shutil.disk_usage(store.folder).free
    if needed > 0.99 * free:
        raise DPMixError(
            f"The features of {rows:,} examples need {needed / 1e9:.2f} GB in "
            f"{store.folder}, where {free / 1e9:.2f} GB are free. Give another "
            "run.cache_dir, fewer views.visits or fewer views."
        )
    views = rows * store.layout.views[0] * store.layout.views[1]
    logging.info(
        "Encoding %s views of %s examples once: %.2f GB in %s.",
        f"{views:,}",
        f"{rows:,}",
        needed / 1e9,
        store.folder,
    )
