"""An exhibit: workers that were not given the same configuration."""

import contextlib
import json
import tempfile
from unittest import mock

import numpy as np

from dpmix_tf.data import load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import Trainer, cluster, default_config
from tests.museum.exhibits import Exhibit

_CLIP = 0.02  # shorter than any example's gradient


def _config(clip_norm):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.padding = 2, 1, 1
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=20, updates=1, accountant="rdp"
    )
    config.privacy.clip_norm = clip_norm
    return config


def _worker(clip_norm, texts_of_workers):
    """Returns a worker's model; `texts_of_workers` replaces the one in cluster."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(cluster, "texts_of_workers", texts_of_workers),
        mock.patch.object(cluster, "text_from_chief", lambda strategy, text: text),
    ):
        trainer = Trainer(_config(clip_norm), folder)
        trainer._close()
        return trainer.model


def workers_clip_alike():
    """How far an example moves the sum on a worker with another clip norm."""
    told = []

    def of_second(strategy, text):
        told.append(json.dumps(json.loads(text) | {"chief": False, "address": "host2"}))
        return [text]

    second = _worker(100 * _CLIP, of_second)
    heard = iter(told)
    try:
        first = _worker(_CLIP, lambda strategy, text: [text, next(heard)])
    except DPMixError as error:
        return False, error.args[0].splitlines()[1].strip() + ": refused"
    images, labels = load_dataset("digits").train.read(np.arange(1))
    parts = second.clipped_gradient_sum(images, labels, ids=np.arange(1))
    length = float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))
    moved = length / first.plan.clip_norm
    return moved > 1 + 1e-5, f"one example moves the sum by {moved:.3g} clip norms"


@contextlib.contextmanager
def workers_not_compared():
    with mock.patch.object(cluster, "refuse_different_workers"):
        yield


EXHIBITS = [
    Exhibit(
        "workers with different clip norms", workers_not_compared, workers_clip_alike
    )
]
