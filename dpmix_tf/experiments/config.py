"""What an experiment can be configured with, and its defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def default_experiment(base: ConfigDict, arms: Mapping[str, Any]) -> ConfigDict:
    """Returns the settings of an experiment, to be changed by a file in configs/.

    Args:
      base: a run's config, see training/config.py.
      arms: name -> fields of `base` and their values, nested as there.
    """
    config = ConfigDict()
    config.title = "Experiment"
    config.base = base
    config.arms = ConfigDict({name: dict(fields) for name, fields in arms.items()})
    config.order = tuple(arms)  # of arms in tables: ConfigDict sorts names
    config.epsilons = (8.0,)  # of base.privacy.epsilon
    config.seeds = 5  # numbered 1, 2, ..., the same in every arm: secret.py
    config.baseline = next(iter(arms))  # arm that the others are compared with
    # Fields of `base` and the values to try, each arm's at each epsilon chosen by the
    # validation accuracy of its averaged weights; such as
    # {"optimizer": {"learning_rate": (0.5, 1.0)}}. Empty: nothing is tuned.
    config.tune = ConfigDict({}, type_safe=False)
    config.tuning_seeds = 1  # a trial's; not among the test runs' seeds
    # Arms that must make as many views an example as each other.
    config.equal_compute = ()
    # (field of `base`, arms to plot over its values) each.
    config.ablations = ()
    config.published = ()  # (arm, epsilon, "accuracy (deviation)", source) each
    config.class_accuracy = True  # in the report
    # Show one training example's views in the report: for public data only.
    config.show_views = False
    return config
