"""An exhibit: a person's images clipped one by one, accounted as one person."""

from unittest import mock

import numpy as np
import tensorflow as tf

from dpmix_tf.auditing import audit_one_run, training_audit
from dpmix_tf.data import Dataset, PeopleSource, load_dataset
from dpmix_tf.training import default_config
from dpmix_tf.views import ViewMaker
from tests.museum.exhibits import Exhibit, _instead


def digits_of_people(**settings):
    """Digits, whose writers are made up: each wrote four."""
    dataset = load_dataset(**settings)
    writers = np.arange(len(dataset.train)) // 4
    return Dataset(
        train=PeopleSource(dataset.train, writers),
        validation=dataset.validation,
        test=dataset.test,
    )


def audited_people():
    """A white-box audit, with people as canaries, of a short training run on digits."""
    config = default_config()
    config.network.update(name="convnet", widths=(16, 32), groups=4)
    config.views.base, config.views.mixed, config.views.augment = 4, 1, "affine"
    config.privacy.update(
        epsilon=4.0, delta=1e-4, expected_batch_size=50, updates=12, accountant="pld"
    )
    with mock.patch.object(training_audit, "load_dataset", digits_of_people):
        audit = audit_one_run(config, image_canaries=0, gradient_canaries=4_000, seed=7)
    bound = f"epsilon >= {audit.epsilon:.2f}, while {audit.claimed[0]:.2f} is claimed"
    return audit.refuted, bound


def images_clipped_one_by_one():
    def make(records):
        def of_images(self, images, labels, ids, **settings):
            if images.shape.rank == 5:
                ids = tf.repeat(ids, images.shape[1])
                images = tf.reshape(images, [-1, *images.shape[2:]])
                labels = tf.reshape(labels, [-1, labels.shape[-1]])
            return records(self, images, labels, ids, **settings)

        return of_images

    return _instead(ViewMaker, "records", make)


EXHIBITS = [
    Exhibit(
        "a person's images clipped one by one",
        images_clipped_one_by_one,
        audited_people,
    )
]
