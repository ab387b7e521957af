"""Membership inference: telling a finished run's training examples from others."""

from pathlib import Path

import numpy as np
from scipy import special

from dpmix_tf.auditing.bounds import Roc, check_confidence, roc
from dpmix_tf.errors import DPMixError
from dpmix_tf.pixels import as_float
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training.restore import restore_data, restore_network

_MOST_MEMBERS = 5_000  # on each side


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy, [n], of logits [n,classes] and labels [n]."""
    return special.logsumexp(logits, 1) - logits[np.arange(len(labels)), labels]


def attack_membership(
    workdir: str | Path,
    *,
    data_dir: str | None = None,
    confidence: float = 0.95,
) -> dict[str, Roc]:
    """Tries to tell a finished run's training examples from its test examples.

    It uses two scores, neither of which needs other networks to be trained: the loss
    (Yeom et al. 2018); and how far the true class's log-odds lie above those of other
    examples of the class, in their standard deviations (the global, offline form of
    LiRA, Carlini et al. 2022, with half of the test set in place of shadow models).

    Args:
      workdir: of a run.
      data_dir: where the data is now; by default where it was during training.
      confidence: of the intervals, in (0, 1).

    Returns:
      Attack -> Roc. At most 5,000 examples of each side are used.

    Raises:
      DPMixError: there is no run or no checkpoint, or the data differs.
    """
    check_confidence(confidence)
    network, metadata = restore_network(workdir)
    dataset = restore_data(workdir, metadata, data_dir=data_dir)
    if dataset.task == MULTI_LABEL:
        raise DPMixError(
            "Membership is attacked by the loss of an image's one class, and these "
            "images have several labels. Audit the training instead: bin/audit.py."
        )
    losses_of, odds, labels = {}, {}, {}
    for name, source in (("in", dataset.train), ("out", dataset.test)):
        source, random = source.examples, np.random.default_rng(0)
        chosen = random.permutation(len(source))[:_MOST_MEMBERS]
        images, labels[name] = source.read(chosen)
        logits = network.predict(as_float(images), batch_size=500, verbose=0)
        losses_of[name] = losses(logits.astype(np.float64), labels[name])
        odds[name] = -np.log(np.expm1(np.maximum(losses_of[name], 1e-12)))
    half = len(odds["out"]) // 2
    reference, reference_labels = odds["out"][:half], labels["out"][:half]
    scores = {
        name: _standardised(odds[name], labels[name], reference, reference_labels)
        for name in odds
    }

    def curve(members, others):
        included = np.repeat([True, False], [len(members), len(others)])
        return roc(np.concatenate([members, others]), included, confidence=confidence)

    return {
        "loss": curve(-losses_of["in"], -losses_of["out"]),
        "log-odds against the class": curve(scores["in"], scores["out"][half:]),
    }


def _standardised(odds, labels, reference, reference_labels):
    """Scores in standard deviations of the class; of all if the class has too few."""
    scores = (odds - reference.mean()) / (reference.std() + 1e-12)
    for label in np.unique(labels):
        of_class = reference[reference_labels == label]
        if len(of_class) >= 5:
            ours = labels == label
            scores[ours] = (odds[ours] - of_class.mean()) / (of_class.std() + 1e-12)
    return scores
