"""Exhibits: the noise of an experiment's runs can be derived from published files."""

import contextlib
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf

from configs import digits
from dpmix_tf.experiments import (
    Runner,
    Study,
    default_experiment,
    runner,
    secret,
    worker,
)
from dpmix_tf.experiments.records import Finished
from dpmix_tf.experiments.secret import Secret
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.mechanism import GaussianMechanism
from dpmix_tf.training import restore_network
from tests.museum.exhibits import Exhibit

TRIED = 1_000  # seeds 0, 1, ... are tried


class _InThisProcess:
    """Stands in for a run's process, so that a fault planted here affects it too."""

    started = 1

    def __init__(self, folder, *_):
        worker.train(folder)

    def status(self):
        return 0

    def stop(self):
        pass

    def wait(self):
        pass


def _study():
    """One run of one update, after which the weights are almost entirely noise."""
    base = digits.get_config()
    base.network.update(widths=(8,), groups=4)
    base.views.base, base.views.mixed = 1, 0
    base.privacy.update(updates=1, expected_batch_size=4, accountant="rdp")
    base.optimizer.learning_rate = 100.0
    config = default_experiment(base, {"plain": {}})
    config.seeds = 1
    return Study(config)


def _revealed(root):
    """Finds numbers and keys in all files that others may read."""
    words = set()
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o044:
            words |= set(re.findall(rb"[0-9a-fA-F]{1,64}", path.read_bytes()))
    texts = [word.decode() for word in words]
    numbers = {int(text) for text in texts if text.isdecimal()}
    return numbers | {int(text, 16) for text in texts if len(text) >= 8}


def _guesses(root):
    """Seeds that a reader of the files would try: numbers, and seeds they lead to."""
    numbers = _revealed(root) | set(range(TRIED))
    yield from (number for number in numbers if number < 2**128)
    for number in numbers:
        key = number.to_bytes(32, "big")  # at most 64 hexadecimal digits
        yield Secret(key).seed("test", 1)


def guessed():
    """The correlation of a run's weights with the noise of the best guessed seed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(runner, "Worker", _InThisProcess),
    ):
        root = Path(folder) / "x"
        (record,) = Runner(_study(), root).run()
        assert isinstance(record, Finished), record
        (workdir,) = root.glob("runs/*/*/*/run")
        network, metadata = restore_network(workdir, weights="raw")
        guesses = set(_guesses(root))
    weights = [v.numpy() for v in network.trainable_variables]
    mechanism = GaussianMechanism(PrivacyPlan(**metadata["plan"]), seed=0)
    nothing = [tf.zeros(part.shape) for part in weights]

    @tf.function
    def noise():
        noisy = mechanism.noisy_mean(nothing, tf.constant(0, tf.int64))
        return tf.concat([tf.reshape(part, [-1]) for part in noisy], 0)

    moved = np.concatenate([part.ravel() for part in weights])
    best = 0.0
    for guess in guesses:
        mechanism.reseed(guess)
        best = max(best, -float(np.corrcoef(noise().numpy(), moved)[0, 1]))
    saw = f"the noise of the best of {len(guesses):,} guessed seeds correlates by "
    return best > 0.5, saw + f"{best:.2f}"


def numbers_for_seeds():
    """A run's seed is its number in results.jsonl."""
    return mock.patch.object(Secret, "seed", lambda self, purpose, number: number)


def drawn_from_the_title():
    """All experiments have the same secret."""
    return mock.patch.object(secret.secrets, "token_hex", lambda count: "00" * count)


@contextlib.contextmanager
def secret_told():
    """The secret itself is written where its fingerprint belongs."""
    told = property(lambda self: self.key.hex())
    with mock.patch.object(Secret, "fingerprint", told):
        yield


EXHIBITS = [
    Exhibit("an experiment's seeds are 1, 2, 3, ...", numbers_for_seeds, guessed),
    Exhibit("all experiments share one secret", drawn_from_the_title, guessed),
    Exhibit("an experiment's secret written beside its results", secret_told, guessed),
]
