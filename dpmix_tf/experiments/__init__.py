"""Experiments: arms x epsilons x seeds, tuned, run and reported."""

from dpmix_tf.experiments.arms import ARMS, arms
from dpmix_tf.experiments.config import default_experiment
from dpmix_tf.experiments.report import write_report
from dpmix_tf.experiments.runner import Runner
from dpmix_tf.experiments.study import Run, Study

__all__ = [
    "ARMS",
    "Run",
    "Runner",
    "Study",
    "arms",
    "default_experiment",
    "write_report",
]
