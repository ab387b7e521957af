"""Class weights shorten clipped gradients; none moves the sum by more than before."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import PeopleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.mechanism import GaussianMechanism
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training import DPMixModel, Trainer, default_config
from tests.conftest import plan_for, tiny_network
from tests.training.test_encoding import network_of

CLIP = 0.02
WEIGHTS = [1.0, 0.5, 0.25, 0.0, 1.0, 0.5, 0.25, 0.0, 1.0, 0.5]


def model_of(network, maker, count, weights=WEIGHTS, **plan):
    plan = plan_for(count, clip=CLIP, **plan)
    return DPMixModel(network, plan=plan, views=maker, seed=1, class_weights=weights)


def length(parts):
    return float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))


@pytest.mark.parametrize("dense", [False, True])
def test_a_clipped_record_is_as_long_as_its_label_s_weight(dense, source):
    network = network_of() if dense else tiny_network()
    model = model_of(network, views.self_aug(base=3, padding=1), 200)
    plain = model_of(network, views.self_aug(base=3, padding=1), 200, weights=None)
    for one in range(8):
        images, labels = source.read(np.array([one]))
        ours = model.clipped_gradient_sum(images, labels, ids=[one])
        whole = plain.clipped_gradient_sum(images, labels, ids=[one])
        weight = WEIGHTS[labels[0]]
        assert length(ours) == pytest.approx(weight * CLIP, rel=1e-3)
        for part, other in zip(ours, whole, strict=True):
            np.testing.assert_allclose(part, weight * other, atol=1e-7)


def test_a_mixed_record_and_a_person_have_the_mean_weight_of_their_labels(source):
    people = PeopleSource(source, np.arange(200) // 4)
    maker = views.ViewMaker(base=4)
    model = model_of(tiny_network(), maker, 50, record="person")
    ids = np.array([3])
    images, labels = people.draw(ids, np.array([1, 2]), np.array([0]))
    total = model.clipped_gradient_sum(images, labels, ids=ids)
    expected = np.mean([WEIGHTS[label] for label in labels[0]])
    assert length(total) == pytest.approx(expected * CLIP, rel=1e-3)


def test_a_config_s_weights_are_used_and_told_of(tmp_path):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.update(base=2, mixed=0, augment="none")
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=20, updates=1, accountant="rdp"
    )
    config.class_weights = tuple(WEIGHTS)
    trainer = Trainer(config, tmp_path)
    trainer.run()
    assert trainer.model.class_weights == WEIGHTS
    assert "weights of their classes, which are taken" in trainer.model.statement()
    trainer.model.save(tmp_path / "weighted.keras")
    again = keras.models.load_model(tmp_path / "weighted.keras")
    assert again.class_weights == WEIGHTS


def test_no_weight_lengthens_a_record_whatever_is_given():
    mechanism = GaussianMechanism(plan_for(10, clip=1.0), 1)
    records = [tf.constant(np.diag([3.0] * 5), tf.float32)]
    weights = tf.constant([2.0, -1.0, np.nan, np.inf, 0.5])
    for gamma in ("fixed", "automatic"):
        mechanism = GaussianMechanism(plan_for(10, clip=1.0, clipping=gamma), 1)
        zero = mechanism.zero([tf.zeros(5)])
        (total,), _ = mechanism.add(zero, records, tf.fill([5], True), weights)
        total = total.numpy()
        assert (np.abs(total) <= 1).all()
        assert total[[1, 2]].tolist() == [0, 0]
        np.testing.assert_allclose(total[[0, 3, 4]], [1, 1, 0.5], rtol=1e-2)


@pytest.mark.parametrize(
    ("weights", "more", "words"),
    [
        ([1.0] * 9, {}, "must be 10 numbers"),
        ([2.0] + [1.0] * 9, {}, "Divide them by the largest"),
        ([-0.1] + [1.0] * 9, {}, "must be 10 numbers"),
        ([float("nan")] + [1.0] * 9, {}, "must be 10 numbers"),
        ([0.0] * 10, {}, "nothing could be learned"),
        ([1.0] * 10, {"task": MULTI_LABEL}, "for one label per image"),
    ],
)
def test_refused(weights, more, words):
    with pytest.raises(DPMixError) as caught:
        DPMixModel(
            tiny_network(),
            plan=plan_for(20),
            views=views.ViewMaker(),
            class_weights=weights,
            **more,
        )
    assert words in str(caught.value)
