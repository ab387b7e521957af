"""Makes the plan, the pool and the model that a config describes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from ml_collections import ConfigDict

from dpmix_tf.data import Dataset, ExampleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import build_network, constants_digest, weights_digest
from dpmix_tf.privacy import PrivacyPlan, ledger, randomness
from dpmix_tf.privacy.plan import EXAMPLE
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.tasks import SINGLE_LABEL
from dpmix_tf.training.class_counts import plan_of_counts
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.encoding import can_encode, encode_views
from dpmix_tf.training.optimizers import make_optimizer
from dpmix_tf.training.private_step import PrivateStep
from dpmix_tf.views import Views, kind_of, make_views


class Start(NamedTuple):
    """Weights to begin private training with, and what is told of them.

    Attributes:
      weights: of the network's trainable variables.
      record: SHA-256 of the pool that they were trained on ("pool"), and of the network
        with all its weights ("network"), in hexadecimal.
    """

    weights: list[np.ndarray]
    record: dict[str, str]


def make_plan(
    config: ConfigDict, num_examples: int, record: str = EXAMPLE
) -> PrivacyPlan:
    """Makes the plan that `config.privacy` asks for.

    Args:
      config: see training/config.py.
      num_examples: records in the training set.
      record: what they are, see PrivacyPlan.

    Raises:
      DPMixError: both or neither of epsilon and noise_multiplier are given, or a value
        is out of range.
    """
    settings = config.privacy.to_dict()
    del settings["class_counts_noise"]
    epsilon = settings.pop("epsilon")
    noise_multiplier = settings.pop("noise_multiplier")
    if (epsilon is None) == (noise_multiplier is None):
        raise DPMixError(
            "Give exactly one of privacy.epsilon and privacy.noise_multiplier; "
            f"received epsilon={epsilon}, noise_multiplier={noise_multiplier}."
        )
    kind = kind_of(config.views.to_dict())
    settings |= {"num_examples": num_examples, "record": record}
    settings["sensitivity"] = kind.sensitivity
    if epsilon is None:
        return PrivacyPlan(noise_multiplier=noise_multiplier, **settings)
    counts = plan_of_counts(config, num_examples, record)
    return PrivacyPlan.for_epsilon(epsilon=epsilon, besides=counts, **settings)


def load_pool(config: ConfigDict, dataset: Dataset) -> SyntheticPool | None:
    """Loads the pool that `config.views` draws from; None if it draws from none.

    Raises:
      DPMixError: there is no path, or the pool does not fit the data set or contains
        training images.
    """
    if not config.views.synthetic:
        return None
    return read_pool(config, dataset, f"views.synthetic = {config.views.synthetic}")


def read_pool(config: ConfigDict, dataset: Dataset, user: str) -> SyntheticPool:
    """Loads a config's pool.

    Args:
      config: see training/config.py.
      dataset: what is trained on privately.
      user: what needs the pool, for messages.

    Raises:
      DPMixError: see load_pool.
    """
    if config.pool.path is None:
        raise DPMixError(
            f"{user} needs pool.path: a folder made by bin/generate_pool.py."
        )
    pool = SyntheticPool.load(
        config.pool.path,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
    )
    _refuse_training_images(pool, dataset.train)
    return pool


def _refuse_training_images(pool: SyntheticPool, source: ExampleSource) -> None:
    """Looks for training examples in the pool, checking at most ten thousand of each.

    Altered images are not found: only its origin makes a pool public.
    """
    known = {hash(pool.images[index].tobytes()) for index in _some(len(pool.images))}
    source = source.examples
    indices = _some(len(source))
    found = 0
    for start in range(0, len(indices), 500):
        images, _ = source.read(indices[start : start + 500])
        found += sum(hash(image.tobytes()) in known for image in images)
    if found:
        raise DPMixError(
            f"The pool holds {found} of the training images themselves. The guarantee "
            "takes the pool as public: make it from images that have nothing to do "
            "with the private ones."
        )


def _some(count: int) -> np.ndarray:
    """Returns up to ten thousand evenly spaced indices."""
    return np.unique(np.linspace(0, count - 1, min(count, 10_000)).astype(np.int64))


def pin_weights(config: ConfigDict) -> ConfigDict:
    """Returns the config with the digest of what its network starts from, if any.

    This is of public weights, or of what makes the constants of features that need no
    data. When the run is resumed, evaluated or exported, they are then checked to be
    the same.

    Raises:
      DPMixError: the weights file does not exist.
    """
    arguments = config.network.to_dict()
    if arguments["name"] == "pretrained" and arguments.get("sha256") is None:
        pinned = {"sha256": weights_digest(**arguments)}
    elif arguments["name"] == "scattering" and arguments.get("constants") is None:
        pinned = {"constants": constants_digest(**arguments)}
    else:
        return config
    config = config.copy_and_resolve_references()
    config.network = ConfigDict(arguments | pinned)
    return config


def build_new_network(config: ConfigDict, dataset: Dataset, seed: int) -> keras.Model:
    """Builds the network that a config describes, with new weights.

    Initial weights come from the secret seed too. Publicly known ones would not harm
    privacy, but one seed should reproduce the whole run.
    """
    initial = randomness.derive(seed, "initial weights")
    keras.utils.set_random_seed(int(initial[0]) % 2**32)
    arguments = config.network.to_dict()
    if arguments.get("normalise") == "pool":
        read_pool(config, dataset, 'network.normalise = "pool"')  # checked
        arguments["normalise"] = config.pool.path
    return build_network(
        arguments.pop("name"),
        input_shape=dataset.image_shape,
        num_classes=len(dataset.class_names),
        arguments=arguments,
        dtype_policy=config.dtype_policy,
    )


def encoded_if_fixed(
    config: ConfigDict,
    network: keras.Model,
    views: Views,
    source: ExampleSource,
    cache_dir: str | Path | None,
) -> Views:
    """Returns the views as features if they are fixed and there is a place for them.

    Args:
      config: see training/config.py.
      network: images -> logits.
      views: made of images.
      source: the examples.
      cache_dir: see build_model.
    """
    if cache_dir is None or not can_encode(views, network):
        return views
    return encode_views(
        network, views, source, cache_dir=cache_dir, dtype=config.run.cache_dtype
    )


def build_model(
    config: ConfigDict,
    dataset: Dataset,
    plan: PrivacyPlan,
    seed: int,
    make_step: Callable[..., PrivateStep] = PrivateStep,
    cache_dir: str | Path | None = None,
    start: Start | None = None,
    class_weights: Sequence[float] | None = None,
) -> DPMixModel:
    """Builds and compiles the model that a config describes, with new weights.

    Args:
      config: see training/config.py.
      dataset: its data set.
      plan: its plan.
      seed: secret; everything random derives from it.
      make_step: see DPMixModel.
      cache_dir: where fixed views (views.visits) of a network with a frozen front are
        kept encoded; by default they are made anew at every update.
      start: weights to begin with, see warm_start.
      class_weights: see DPMixModel; by default the config's.

    Raises:
      DPMixError: the network, its views, its pool or its optimizer is refused.
    """
    network = build_new_network(config, dataset, seed)
    if start is not None:
        for variable, weight in zip(
            network.trainable_variables, start.weights, strict=True
        ):
            variable.assign(weight)
    views = make_views(config.views.to_dict(), load_pool(config, dataset))
    views = encoded_if_fixed(config, network, views, dataset.train, cache_dir)
    model = DPMixModel(
        network,
        plan=plan,
        views=views,
        seed=seed,
        chunk_size=config.run.chunk_size,
        ema_decay=config.ema_decay,
        private_metrics=config.run.private_metrics,
        task=dataset.task,
        class_weights=class_weights or tuple(config.class_weights) or None,
        make_step=make_step,
    )
    if start is not None:
        model.account.note(ledger.WARM_START)
    if config.network.get("normalise") == "pool":
        model.account.note(ledger.PUBLIC_POOL)
    model.compile(
        optimizer=make_optimizer(config),
        metrics=["accuracy"] if dataset.task == SINGLE_LABEL else None,
        jit_compile=config.run.jit_compile,
    )
    return model
