r"""Suggested settings beside tuned ones: is the rule for the rate within a point?

python bin/experiment.py --config=configs/experiments/suggested.py:digits,scattering,3 \
    --workdir=runs/suggested/digits_scattering_3

After the colon: a data set, a network and an epsilon; and, if not all training examples
are to be used, how many. The rates around the suggested one are a fourth, half, two
times and four times it, each with three seeds; the report has the validation accuracy
of each. Add --config.base.data.data_dir=... if TFDS has already prepared the data.
"""

from dpmix_tf.experiments import default_experiment
from dpmix_tf.training import default_config
from dpmix_tf.training.suggest import suggest

_EXAMPLES = {"digits": 1437, "cifar10": 50_000, "fashion_mnist": 60_000}
_SIZES = {"digits": 8, "cifar10": 32, "fashion_mnist": 28}
_VALIDATION = 0.2
_MINUTES = {"digits": 0.01, "cifar10": 60.0, "fashion_mnist": 60.0}


def get_config(which: str = "digits,scattering,3"):
    """Returns the experiment's configuration.

    Args:
      which: data set, network, epsilon and perhaps number of training examples.
    """
    data, network, epsilon, *examples = which.split(",")
    examples = int(examples[0]) if examples else _EXAMPLES[data]
    base = default_config()
    base.data.name = data
    base.data.train_examples = examples
    for choice in suggest(
        num_examples=round(examples * (1 - _VALIDATION)),
        epsilon=float(epsilon),
        network=network,
        minutes=_MINUTES[data],
        image_size=_SIZES[data],
    ):
        *path, last = choice.field.split(".")
        part = base
        for name in path:
            part = part[name]
        if isinstance(choice.value, dict):
            part[last].update(choice.value)
        else:
            part[last] = choice.value
    base.data.validation_fraction = _VALIDATION
    rate = base.optimizer.learning_rate
    config = default_experiment(base, {"suggested": {}})
    config.title = f"Suggested settings: {network} on {examples:,} of {data}"
    config.epsilons = (float(epsilon),)
    config.seeds = 1
    config.tuning_seeds = 3
    config.tune.optimizer = {
        "learning_rate": tuple(rate * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0))
    }
    return config
