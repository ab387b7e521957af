"""Audits of a training run: what attacks with canaries show about its epsilon."""

import dataclasses
import functools
from typing import Any, cast

import keras
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dpmix_tf.auditing.bounds import (
    Bound,
    Roc,
    check_confidence,
    clopper_pearson_bound,
    gaussian_bound,
    one_run_bound,
    roc,
)
from dpmix_tf.auditing.canaries import CanarySource, CanaryStep, image_canaries
from dpmix_tf.auditing.membership import losses
from dpmix_tf.auditing.pictures import describe_roc
from dpmix_tf.data import PoissonBatches, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.plan import round_down, round_up
from dpmix_tf.training.build import build_model, make_plan


@dataclasses.dataclass(frozen=True)
class Audit:
    """What attacks on a training run have shown.

    Attributes:
      claimed: (epsilon, delta) of the plan.
      confidence: of all bounds together.
      bounds: attack -> lower bounds on epsilon.
      rocs: attack -> its ROC.
      canaries: attack -> how many it has guessed about.
    """

    claimed: tuple[float, float]
    confidence: float
    bounds: dict[str, list[Bound]]
    rocs: dict[str, Roc]
    canaries: dict[str, int]

    @property
    def epsilon(self) -> float:
        """The largest of all lower bounds."""
        return max(bound.epsilon for each in self.bounds.values() for bound in each)

    @property
    def refuted(self) -> bool:
        """Whether the training run spends more than it claims."""
        return self.epsilon > self.claimed[0]

    def verdict(self) -> str:
        """Returns the result in words."""
        claimed, delta = self.claimed
        shown = f"epsilon >= {round_down(self.epsilon)} at delta = {delta:g}"
        sure = f"with {self.confidence:.0%} confidence"
        if self.refuted:
            return (
                f"REFUTED: {sure} this training run has {shown}, more than the "
                f"{round_up(claimed)} that it claims. Do not publish its weights."
            )
        return (
            f"Not refuted: {sure} this training run has {shown}; it claims "
            f"{round_up(claimed)}. This does not prove the claim: a stronger attack "
            "might show more."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns values for JSON, without the score of any single example."""
        return {
            "claimed_epsilon": self.claimed[0],
            "delta": self.claimed[1],
            "confidence": self.confidence,
            "epsilon_lower_bound": self.epsilon,
            "refuted": self.refuted,
            "verdict": self.verdict(),
            "attacks": {
                name: {
                    "canaries": self.canaries[name],
                    "bounds": [dataclasses.asdict(bound) for bound in bounds],
                    **describe_roc(self.rocs[name]),
                }
                for name, bounds in self.bounds.items()
            },
        }


class _Experiment:
    """A config's training with canaries, to be run once or many times."""

    def __init__(self, config: ConfigDict, images: int, gradients: int, seed: int):
        self.config, self.images, self.gradients = config, images, gradients
        self.dataset = load_dataset(**config.data.to_dict())
        examples = len(self.dataset.train)
        self.claimed = make_plan(config, examples, self.dataset.train.record)
        if not self.claimed.noise_multiplier > 0:
            raise DPMixError(
                "A plan without noise claims nothing that could be audited."
            )
        # More examples at the same probability and noise cost the same epsilon.
        count = examples + images + gradients
        self.plan = dataclasses.replace(
            self.claimed,
            num_examples=count,
            expected_batch_size=count * self.claimed.sampling_probability,
        )
        random = np.random.default_rng(randomness.derive(seed, "canaries").view("u8"))
        self.canary_images, self.canary_labels = image_canaries(
            self.dataset, images, random
        )
        self.source = CanarySource(
            self.dataset.train, self.canary_images, self.canary_labels, gradients
        )
        self.model = build_model(
            config,
            self.dataset,
            self.plan,
            seed,
            functools.partial(
                CanaryStep, examples=examples, images=images, gradients=gradients
            ),
        )

    @property
    def step(self) -> CanaryStep:
        """The model's step, which was made as a CanaryStep."""
        return cast(CanaryStep, self.model.step)

    def run(self, included: np.ndarray, seed: int, after_update=None):
        """Trains once; returns the scores of the image and the gradient canaries."""
        self.step.include(included)
        batches = PoissonBatches(self.source, self.plan, seed=seed)
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: after_update and after_update()
        )
        self.model.fit(batches, verbose=0, callbacks=[callback])
        return self._losses(), self.step.scores

    def _losses(self):
        if not self.images:
            return np.zeros(0)
        logits = self.model(self.canary_images).numpy().astype(np.float64)
        return -losses(logits, self.canary_labels)


def _start_again(experiment: _Experiment, state: list[np.ndarray], seed) -> None:
    """Returns a model to its state before the first update, with another seed."""
    for variable, value in zip(_all(experiment.model.state()), state, strict=True):
        variable.assign(value)
    experiment.step.start_again(seed)


def _all(state):
    return [variable for variables in state.values() for variable in variables]


def audit_one_run(
    config: ConfigDict,
    *,
    image_canaries: int = 100,
    gradient_canaries: int = 5_000,
    confidence: float = 0.95,
    seed: int | None = None,
) -> Audit:
    """Trains once with canaries, as `config` says, and bounds epsilon.

    Args:
      config: see training/config.py; its seed is not used.
      image_canaries: even, at most twice the number of test images; 0 for none.
      gradient_canaries: at most one per trainable weight; 0 for none.
      confidence: of all bounds together, in (0, 1).
      seed: of everything, to repeat an audit.

    Returns:
      Audit.

    Raises:
      DPMixError: the config cannot be trained, or a number is out of range.
    """
    check_confidence(confidence)
    if image_canaries + gradient_canaries == 0:
        raise DPMixError("There are no canaries: nothing can be audited.")
    seed = randomness.fresh_seed() if seed is None else seed
    experiment = _Experiment(config, image_canaries, gradient_canaries, seed)
    random = np.random.default_rng(randomness.derive(seed, "coins").view("u8"))
    included = random.random(image_canaries + gradient_canaries) < 0.5
    with tqdm(total=experiment.plan.updates, unit="update") as bar:
        losses, ratios = experiment.run(included, seed, bar.update)
    attacks = {}
    if image_canaries:
        attacks["black box, image canaries"] = losses, included[:image_canaries]
    if gradient_canaries:
        attacks["white box, gradient canaries"] = ratios, included[image_canaries:]
    return _conclude(experiment, attacks, confidence, independent=False)


def audit_many_runs(
    config: ConfigDict, *, runs: int, confidence: float = 0.95, seed: int | None = None
) -> Audit:
    """Trains many times, each time with or without one canary of each kind.

    All runs start from the same weights and differ in noise, views, sampling and coins.

    Args:
      config: see training/config.py; a run should be short.
      runs: 20 or more. No bound exceeds about log(runs / 4).
      confidence: see audit_one_run.
      seed: of everything.

    Returns:
      Audit.

    Raises:
      DPMixError: see audit_one_run; or there are too few runs.
    """
    check_confidence(confidence)
    if runs < 20:
        raise DPMixError(f"runs must be 20 or more, received: {runs}.")
    seed = randomness.fresh_seed() if seed is None else seed
    experiment = _Experiment(config, 1, 1, seed)
    start = [variable.numpy() for variable in _all(experiment.model.state())]
    random = np.random.default_rng(randomness.derive(seed, "coins").view("u8"))
    included = random.random((runs, 2)) < 0.5
    scores = np.empty((runs, 2))
    for run in tqdm(range(runs), unit="run"):
        digest = randomness.derive(seed, f"run {run}").tobytes()
        own = randomness.Seed(int.from_bytes(digest, "big"), randomness.SHARED)
        _start_again(experiment, start, own)
        losses, ratios = experiment.run(included[run], own)
        scores[run] = losses[0], ratios[0]
    attacks = {
        "black box, an image canary": (scores[:, 0], included[:, 0]),
        "white box, a gradient canary": (scores[:, 1], included[:, 1]),
    }
    return _conclude(experiment, attacks, confidence, independent=True)


def _conclude(
    experiment: _Experiment,
    attacks: dict[str, tuple[np.ndarray, np.ndarray]],
    confidence: float,
    *,
    independent: bool,
) -> Audit:
    """Bounds epsilon from scores; all bounds hold jointly at the given confidence."""
    each = 1 - (1 - confidence) / (2 * len(attacks))
    delta, bounds, rocs = experiment.plan.delta, {}, {}
    for name, (scores, included) in attacks.items():
        arguments: dict[str, Any] = {
            "scores": scores,
            "included": included,
            "confidence": each,
        }
        if independent:
            found = [clopper_pearson_bound(**arguments, delta=delta)]
        else:
            found = [one_run_bound(**arguments, delta=delta)]
        if name.startswith("white box"):
            # Scores of gradient canaries are independent if the run follows its plan.
            found.append(gaussian_bound(**arguments, plan=experiment.plan))
        bounds[name] = found
        rocs[name] = roc(scores, included, confidence=each)
    canaries = {name: len(included) for name, (_, included) in attacks.items()}
    claimed = experiment.claimed.epsilon(), delta
    return Audit(claimed, confidence, bounds, rocs, canaries)
