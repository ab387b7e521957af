r"""What features that need no data are worth: CIFAR-10 or another data set of its kind.

python bin/experiment.py --config=configs/experiments/no_public_data.py:cifar10 \
    --workdir=runs/no_public_data --jobs=2

After the colon: cifar10, fashion_mnist, mnist or svhn_cropped. Add
--config.base.data.data_dir=... if TFDS has already prepared it there. The arms differ
in their features; each arm's rate is tuned at each epsilon on a tenth of the training
examples, and what is reported is then trained on all of them.
"""

from configs import cifar10_scattering
from dpmix_tf.experiments import default_experiment

_FEATURES = {
    "group_norm": {"features": "group_norm"},
    "scattering": {"features": "scattering"},
    "patches": {"features": "patches"},
    "both": {"features": "scattering+patches"},
    # Other draws of the same constants: the images of dead leaves, the patches.
    "both_seed_1": {"features": "scattering+patches", "seed": 1},
    "both_seed_2": {"features": "scattering+patches", "seed": 2},
}


def get_config(data: str = "cifar10"):
    """Returns the experiment's configuration.

    Args:
      data: the data set.
    """
    base = cifar10_scattering.get_config()
    base.data.name = data
    base.data.validation_fraction = 0.1
    base.run.evaluate_every = base.privacy.updates
    arms = {name: {"network": settings} for name, settings in _FEATURES.items()}
    config = default_experiment(base, arms)
    config.title = f"Features without public data on {data}"
    config.epsilons = (1.0, 2.0, 3.0, 4.0, 8.0)
    config.seeds = 5
    config.refit = True
    config.tune.optimizer = {"learning_rate": (0.5, 1.5, 3.5)}
    return config
