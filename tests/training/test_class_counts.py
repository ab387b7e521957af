"""Class weights from noised counts: charged once, repeated on resume, never refined."""

import json

import numpy as np
import pytest

from dpmix_tf.data import ArraySource, Dataset, PeopleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.counts import counts_plan
from dpmix_tf.privacy.ledger import Ledger
from dpmix_tf.training import Trainer, default_config
from dpmix_tf.training.build import make_plan
from dpmix_tf.training.class_counts import count_classes, plan_of_counts


def config_of(noise=3.0, **privacy):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.update(base=2, mixed=0, augment="none")
    config.privacy.update(
        epsilon=3.0, delta=1e-4, expected_batch_size=20, updates=2, accountant="rdp"
    )
    config.privacy.update(class_counts_noise=noise, **privacy)
    config.run.update(evaluate_every=1, checkpoint_every=1)
    return config


def uneven(digits):
    """Zeros to threes, of which a tenth are threes."""
    images, labels = digits.train.arrays()
    kept = np.concatenate([np.where(labels == label)[0][:60] for label in range(3)])
    kept = np.concatenate([kept, np.where(labels == 3)[0][:20]])
    part = ArraySource(images[kept], labels[kept], list("0123"))
    return Dataset(train=part, validation=None, test=part)


def test_epsilon_covers_counts_and_training_together(digits, tmp_path):
    dataset, config = uneven(digits), config_of()
    trainer = Trainer(config, tmp_path, dataset=dataset)
    final = trainer.run()
    weights = trainer.model.class_weights
    assert weights[3] == 1.0 and all(0.2 < weight < 0.5 for weight in weights[:3])
    assert 2.9 < final["epsilon"] <= 3.0
    # As composed by hand, and more than training alone.
    training, counts = (
        PrivacyPlan(**entry["plan"])
        for entry in json.loads((tmp_path / "privacy.json").read_text())["ledger"]
    )
    assert {training.noise_multiplier, counts.noise_multiplier} >= {3.0}
    alone = make_plan(config, len(dataset.train)).epsilon()
    assert alone < 2.9
    statement = trainer.model.statement()
    assert "a release of how many examples have each label" in statement
    assert "weights of their classes" in statement


def test_a_run_that_resumes_keeps_its_weights_and_pays_once(digits, tmp_path):
    dataset, config = uneven(digits), config_of()
    first = Trainer(config, tmp_path, dataset=dataset)
    first._checkpoint()
    first._close()
    again = Trainer(config, tmp_path, dataset=dataset)
    assert again.model.class_weights == first.model.class_weights
    assert again.run()["epsilon"] <= 3.0
    assert len(again.model.ledger.entries) == 2


def test_a_person_is_counted_once_however_many_images_they_have(digits):
    part = uneven(digits).train
    owners = np.concatenate([np.zeros(180, int), np.arange(1, 21)])
    people = PeopleSource(part, owners)
    config = config_of(noise=1e-3)
    plan = plan_of_counts(config, len(people), "person")
    assert plan.record == "person"
    weights = count_classes(config, people, plan, seed=1).weights
    # One person with 60 of each of three classes, of length 1; twenty with a three.
    expected = np.array([3**-0.5] * 3 + [20.0])
    np.testing.assert_allclose(weights, expected.min() / expected, rtol=0.05)


def test_noise_alone_makes_no_class_rare(digits):
    config = config_of(noise=1_000.0)
    source = uneven(digits).train
    plan = plan_of_counts(config, len(source), "example")
    for seed in range(20):
        weights = count_classes(config, source, plan, seed).weights
        assert min(weights) > 0.3 and max(weights) == 1.0


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_calibration_leaves_room_for_another_release(accountant):
    settings = dict(
        delta=1e-5,
        num_examples=1_000,
        expected_batch_size=50,
        updates=20,
        accountant=accountant,
    )
    besides = counts_plan(1_000, 4.0, 1e-5, accountant=accountant)
    plan = PrivacyPlan.for_epsilon(epsilon=2.0, besides=besides, **settings)
    both = Ledger.planned(plan).joined(Ledger((_entry(besides),)))
    spent = both.epsilon(1e-5, accountant)
    assert 1.98 < spent <= 2.0
    assert plan.epsilon() < spent
    with pytest.raises(DPMixError, match="spends all of epsilon"):
        costly = counts_plan(1_000, 0.5, 1e-5, accountant=accountant)
        PrivacyPlan.for_epsilon(epsilon=2.0, besides=costly, **settings)


def _entry(plan):
    (entry,) = Ledger.planned(plan).entries
    return type(entry)(run="other", plan=plan, updates=1, conditions=frozenset())


def test_refused_before_anything_is_spent(digits, tmp_path):
    dataset = uneven(digits)
    with pytest.raises(DPMixError, match="must be above 0"):
        Trainer(config_of(noise=0.0), tmp_path / "a", dataset=dataset)
    config = config_of()
    config.class_weights = (1.0, 1.0, 1.0, 0.5)
    with pytest.raises(DPMixError, match="Both class_weights and"):
        Trainer(config, tmp_path / "b", dataset=dataset)
    several = ArraySource(
        dataset.train.arrays()[0], np.eye(4)[dataset.train.arrays()[1]]
    )
    part = Dataset(train=several, validation=None, test=several)
    with pytest.raises(DPMixError, match="for one label per image"):
        Trainer(config_of(), tmp_path / "c", dataset=part)
