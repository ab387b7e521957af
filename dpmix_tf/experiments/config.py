"""The settings of an experiment and their defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def default_experiment(base: ConfigDict, arms: Mapping[str, Any]) -> ConfigDict:
    """Returns an experiment's default settings, which a file in configs/ changes.

    Args:
      base: a run's config, see training/config.py.
      arms: name -> fields of `base` and their values, nested as in `base`.
    """
    config = ConfigDict()
    config.title = "Experiment"
    config.base = base
    config.arms = ConfigDict({name: dict(fields) for name, fields in arms.items()})
    config.order = tuple(arms)  # of arms in tables, because ConfigDict sorts names
    config.epsilons = (8.0,)  # values of base.privacy.epsilon
    config.seeds = 5  # numbered 1, 2, ..., the same in every arm: see secret.py
    config.baseline = next(iter(arms))  # the arm that the others are compared with
    # Fields of `base` and the values to try, such as
    # {"optimizer": {"learning_rate": (0.5, 1.0)}}. For each arm and epsilon, the values
    # are chosen by the validation accuracy of the averaged weights. If empty, nothing
    # is tuned.
    config.tune = ConfigDict({}, type_safe=False)
    config.tuning_seeds = 1  # per trial; test runs use other seeds
    # Test runs train on the validation examples too, once these have served tuning.
    config.refit = False
    # Arms that must all make the same number of views per example.
    config.equal_compute = ()
    # Pairs (field of `base`, arms to plot over its values).
    config.ablations = ()
    config.published = ()  # tuples (arm, epsilon, "accuracy (deviation)", source)
    config.class_accuracy = True  # show accuracy by class in the report
    # Show one training example's views in the report; for public data only.
    config.show_views = False
    return config
