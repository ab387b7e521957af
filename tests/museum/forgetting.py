"""Exhibits: spent privacy is forgotten, or spent again without being counted."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data import PoissonBatches
from dpmix_tf.privacy import Ledger, account
from dpmix_tf.privacy.account import Account
from dpmix_tf.training import DPMixModel
from tests.museum.exhibits import (
    Exhibit,
    _digits,
    _instead,
    _model,
    numbers_not_looked_at,
)


class WeightsComeBack(keras.callbacks.Callback):
    """Keeps the weights after epoch 0 and restores them after epoch 1."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.kept = self.model.get_weights()
        if epoch == 1:
            self.model.set_weights(self.kept)


def noise_used_once():
    """The correlation of updates' noise in a run whose weights a callback restores."""
    source, noises = _digits(), []
    model = _model(source, noise=2.0, updates=6)
    noisy_mean = model.step.mechanism.noisy_mean

    def listened(total, update):
        noisy = noisy_mean(total, update)

        def hear(*parts):
            half = len(parts) // 2
            pairs = zip(parts[:half], parts[half:], strict=True)
            size = model.plan.expected_batch_size
            noises.append(
                np.concatenate(
                    [(n.numpy() * size - t.numpy()).ravel() for n, t in pairs]
                )
            )

        with tf.control_dependencies([tf.py_function(hear, [*noisy, *total], [])]):
            return [tf.identity(part) for part in noisy]

    model.step.mechanism.noisy_mean = listened
    model.fit(
        PoissonBatches(source, model.plan),
        steps_per_epoch=2,
        epochs=3,
        verbose=0,
        callbacks=[WeightsComeBack()],
    )
    alike = np.corrcoef(np.stack(noises)) - np.eye(len(noises))
    closest = float(np.abs(alike).max())
    return closest > 0.5, f"the noise of two updates has a correlation of {closest:.2f}"


@contextlib.contextmanager
def number_kept_among_the_weights():
    """In addition, nothing checks that a batch belongs to the update it is used for."""

    def getting(get_weights):
        return lambda self: [*get_weights(self), np.int64(self.account.next)]

    def setting(set_weights):
        def both(self, weights):
            set_weights(self, weights[:-1])
            self.account._next.assign(weights[-1])

        return both

    with (
        _instead(DPMixModel, "get_weights", getting),
        _instead(DPMixModel, "set_weights", setting),
        numbers_not_looked_at(),
    ):
        yield


def trained_before_counts():
    """The epsilon that a network's second model reports, and that of all updates."""
    source = _digits()
    first = _model(source, noise=2.0, updates=6)
    first.fit(PoissonBatches(source, first.plan), steps_per_epoch=4, verbose=0)
    second = _model(source, noise=2.0, updates=6, network=first.network)
    second.fit(PoissonBatches(source, first.plan), steps_per_epoch=2, verbose=0)
    spent = first.plan.epsilon(6)
    saw = f"epsilon {second.epsilon:.2f} is reported, while {spent:.2f} is spent"
    return second.epsilon < spent, saw


@contextlib.contextmanager
def earlier_training_forgotten():
    """Every model treats its network's variables as if they were new."""

    def alone(_):
        return property(lambda self: Ledger((self.entry(),)))

    with (
        _instead(account, "records_of", lambda _: lambda variable: {}),
        _instead(Account, "ledger", alone),
        _instead(Account, "recount", lambda _: lambda self: None),
    ):
        yield


EXHIBITS = [
    Exhibit(
        "the number of the next update stored with the weights",
        number_kept_among_the_weights,
        noise_used_once,
    ),
    Exhibit(
        "a network's earlier training forgotten",
        earlier_training_forgotten,
        trained_before_counts,
    ),
]
