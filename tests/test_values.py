"""numpy's integers, floats and texts are as good as Python's, and JSON takes them."""

import json

import keras
import numpy as np
import pytest

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import DPMixModel
from dpmix_tf.views import NaiveMixup, ViewMaker
from tests.conftest import tiny_network


def numpy_plan():
    return PrivacyPlan(
        noise_multiplier=np.float32(1.0),
        delta=np.float64(1e-5),
        num_examples=np.int64(40),
        expected_batch_size=np.int32(8),
        updates=np.int64(3),
        clip_norm=np.float32(0.5),
        accountant=np.str_("rdp"),
    )


def python_plan():
    return PrivacyPlan(
        noise_multiplier=1.0,
        delta=1e-5,
        num_examples=40,
        expected_batch_size=8,
        updates=3,
        clip_norm=0.5,
        accountant="rdp",
    )


def test_a_plan_of_numpy_values_is_the_same_plan():
    assert numpy_plan() == python_plan()
    assert json.dumps(numpy_plan().to_dict()) == json.dumps(python_plan().to_dict())
    assert numpy_plan().epsilon(np.int64(2)) == python_plan().epsilon(2)


@pytest.mark.parametrize(
    "make",
    [
        lambda number, text: views.dp_mix_self(
            base=number(4), mixed=number(3), mixer=text("cutmix")
        ),
        lambda number, text: ViewMaker(base=number(2), augment=text("none")),
        lambda number, text: NaiveMixup(microbatch=number(2)),
    ],
)
def test_views_of_numpy_values_are_the_same_views(make):
    given, plain = make(np.int64, np.str_), make(int, str)
    assert given == plain
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())
    assert views.from_dict(json.loads(json.dumps(given.to_dict()))) == plain


def test_a_model_of_numpy_values_trains_and_is_saved(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 4
    names = list(np.array(["cat", "dog", "cow", "hen"]))
    source = ArraySource(images, labels, names)
    model = DPMixModel(
        tiny_network(num_classes=4),
        plan=numpy_plan(),
        views=views.dp_mix_self(base=np.int64(2), mixed=np.int64(1)),
        seed=np.int64(3),
        chunk_size=np.int64(4),
        ema_decay=np.float32(0.5),
    )
    model.compile("sgd")
    model.fit(PoissonBatches(source, model.plan), steps_per_epoch=1, verbose=0)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.plan == python_plan() and again.updates == 1
