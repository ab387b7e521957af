"""Every config in configs/ builds, makes a plan and takes one update."""

import importlib
import warnings

import keras
import numpy as np
import pytest

from dpmix_tf.data import ArraySource, PoissonBatches, describe_dataset
from dpmix_tf.models import build_network
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.synthetic.stable_diffusion import prompt_for
from dpmix_tf.training import DPMixModel
from dpmix_tf.training.trainer import make_optimizer, make_plan
from dpmix_tf.views import make_views
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
PUBLISHED_SIZES = {"cifar10": 50_000, "digits": 1294}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "pools"])
def test_config_makes_its_plan_and_one_update(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__
    config = module.get_config()
    config.lock()
    config.privacy.accountant = "rdp"
    plan = make_plan(config, PUBLISHED_SIZES[config.data.name])
    assert 0.98 * config.privacy.epsilon < plan.epsilon() <= config.privacy.epsilon

    classes, shape = describe_dataset(config.data.name)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, *shape), dtype=np.uint8)
    source = ArraySource(images, np.arange(20) % 10, classes)
    config.privacy.expected_batch_size, config.privacy.updates = 1, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = make_plan(config, 20)
    pool = SyntheticPool(
        images=images,
        labels=np.sort(np.arange(20) % 10),
        class_names=classes,
        digest="",
    )
    arguments = config.network.to_dict()
    network = build_network(
        arguments.pop("name"),
        input_shape=shape,
        num_classes=len(classes),
        arguments=arguments,
    )
    views = make_views(config.views.to_dict() | {"base": 2, "mixed": 2}, pool)
    model = DPMixModel(network, plan=small, views=views)
    model.compile(make_optimizer(config))
    model.fit(PoissonBatches(source, small), verbose=0)
    assert model.updates == 1
    keras.backend.clear_session()


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
