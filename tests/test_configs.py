"""Every config in configs/ builds, makes a plan and takes one update."""

import functools
import importlib
import warnings

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import ConvNeXt

from configs import finetune
from dpmix_tf.data import ArraySource, PoissonBatches, describe_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import build_network, encoders
from dpmix_tf.privacy import Ledger
from dpmix_tf.privacy.statement import state_guarantee
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.synthetic.stable_diffusion import prompt_for
from dpmix_tf.training import DPMixModel
from dpmix_tf.training.build import make_plan
from dpmix_tf.training.optimizers import make_optimizer
from dpmix_tf.views import make_views
from tests.conftest import ROOT
from tests.models.test_pretrained import SMALL

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
# Pools are no runs; the others are tried below and in training/test_fine_tuning.py.
ELSEWHERE = ("pools", "finetune", "own_encoder", "photos", "cifar10_encoder")
PUBLISHED_SIZES = {"cifar10": 50_000, "digits": 1294, "fashion_mnist": 60_000}


SMALLEST = SMALL | {
    "convnext_base": encoders.Encoder(
        32,
        encoders._convnext(
            functools.partial(
                ConvNeXt,
                depths=[1] * 4,
                projection_dims=[8] * 4,
                name="convnext_base",
            )
        ),
    )
}
FINETUNE = [
    f"{data},{encoder},{arm}"
    for data in finetune.TRAIN
    for encoder in finetune.ENCODERS
    for arm in finetune.PUBLISHED_ARMS
]


def one_update(config, image_shape, classes):
    """Trains the config's network for one update on a few images of noise."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % len(classes)
    images = random.integers(0, 256, (20, *image_shape), dtype=np.uint8)
    source = ArraySource(images, labels, classes)
    config.privacy.expected_batch_size, config.privacy.updates = 1, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = make_plan(config, 20)
    pool = SyntheticPool(
        images=images,
        labels=np.sort(labels),
        class_names=classes,
        digest="",
    )
    arguments = config.network.to_dict()
    network = build_network(
        arguments.pop("name"),
        input_shape=image_shape,
        num_classes=len(classes),
        arguments=arguments,
    )
    views = make_views(config.views.to_dict() | {"base": 2, "mixed": 2}, pool)
    model = DPMixModel(network, plan=small, views=views)
    model.compile(make_optimizer(config))
    model.fit(PoissonBatches(source, small), verbose=0)
    assert model.updates == 1
    keras.backend.clear_session()


def check_plan(config, num_examples):
    config.lock()
    config.privacy.accountant = "rdp"
    plan = make_plan(config, num_examples)
    assert 0.98 * config.privacy.epsilon < plan.epsilon() <= config.privacy.epsilon
    text = state_guarantee(Ledger.planned(plan), plan)
    assert f"{config.privacy.updates}" in text.replace(",", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_config_makes_its_plan_and_one_update(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__
    config = module.get_config()
    check_plan(config, PUBLISHED_SIZES[config.data.name])
    classes, shape = describe_dataset(config.data.name)
    one_update(config, shape, classes)


@pytest.mark.slow
@pytest.mark.parametrize("what", FINETUNE)
def test_published_fine_tuning_makes_its_plan_and_one_update(what, monkeypatch):
    data, encoder, arm = what.split(",")
    config = finetune.get_config(what)
    check_plan(config, finetune.TRAIN[data])
    if data == "caltech256":  # its folder names the classes
        classes, shape = tuple(map(str, range(257))), (224, 224, 3)
    else:
        classes, shape = describe_dataset(data)
    # Random weights: nothing to download. One of each sees the encoder as it is, if not
    # its images; the others a smaller one, for time.
    config.network.weights = None
    if (data, arm) == ("cifar10", "dp_mix_diff"):
        config.network.image_size = 64
    else:
        monkeypatch.setitem(encoders.ENCODERS, encoder, SMALLEST[encoder])
    one_update(config, shape, classes)


def test_fine_tuning_of_something_else_says_what_there_is():
    for what in ("cifar10", "cifar10,resnet,dp_mix_self", ""):
        with pytest.raises(DPMixError, match="clip_vit_b16, convnext_base"):
            finetune.get_config(what)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "eurosat", "oxford_iiit_pet"])
def test_pools_have_prompts_that_name_their_classes(name):
    from configs import pools

    settings = pools.get_config(name).pool.to_dict()
    classes, _ = describe_dataset(name)
    prompts = {
        prompt_for(c, i, settings["prompts"], settings["class_prompts"])
        for c in classes
        for i in range(len(settings["prompts"]))
    }
    assert len(prompts) >= len(classes)
    assert all("{" not in prompt and "_" not in prompt for prompt in prompts)
    if name == "eurosat":
        assert set(settings["class_prompts"]) == set(classes)
        assert all(prompt.startswith("a satellite photo of") for prompt in prompts)
