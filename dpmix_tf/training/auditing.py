"""Attacks on a training, by canaries that a fair coin puts in, and on its result.

Two kinds of canaries are trained on beside the private examples:

- image canaries, which go the whole way: mislabelled images, and images of noise. The
  attack sees the finished network and scores them by their loss (black box).
- gradient canaries, whose gradient is one number of the network's weights, ten times
  longer than the clip norm. They go through sampling, clipping, sum and noise, and
  move the sum by as much as the plan allows one example to: by the clip norm times the
  plan's sensitivity. The attack knows everything but the coins, the sampling and the
  noise, and sees every noisy sum; it scores them by the likelihood ratio of what it
  sees at that weight (white box; Nasr et al. 2023, section 4.2, call it a Dirac
  canary).

A canary that is left out is drawn like the others and then dropped, so that nothing
else depends on the coin.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from scipy import special
from tqdm import tqdm

from dpmix_tf.data import Dataset, ExampleSource, PoissonBatches, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.audit import (
    Bound,
    Roc,
    clopper_pearson_bound,
    gaussian_bound,
    one_run_bound,
    roc,
)
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.restore import restore_data, restore_network
from dpmix_tf.training.trainer import build_model, make_plan
from dpmix_tf.views.maker import as_float

_CANARY_LENGTH = 10.0  # clip norms: clipping has something to do
_RECORDS_HELD = 16_000_000  # numbers, while gradient canaries are added

# Of each side, in the membership attack on a finished run.
_MOST_MEMBERS = 5_000


@dataclasses.dataclass(frozen=True)
class Audit:
    """What attacks on a training have shown.

    Attributes:
      claimed: (epsilon, delta) of the plan.
      confidence: of all bounds together.
      bounds: attack -> lower bounds on epsilon.
      rocs: attack -> its ROC.
    """

    claimed: tuple[float, float]
    confidence: float
    bounds: dict[str, list[Bound]]
    rocs: dict[str, Roc]

    @property
    def epsilon(self) -> float:
        """The largest of all lower bounds."""
        return max(bound.epsilon for each in self.bounds.values() for bound in each)

    @property
    def refuted(self) -> bool:
        """Whether the training spends more than it claims."""
        return self.epsilon > self.claimed[0]

    def verdict(self) -> str:
        """One sentence."""
        claimed, delta = self.claimed
        shown = f"epsilon >= {self.epsilon:.3f} at delta = {delta:g}"
        sure = f"with {self.confidence:.0%} confidence"
        if self.refuted:
            return (
                f"REFUTED: {sure} this training has {shown}, more than the "
                f"{round_up(claimed)} that it claims. Do not publish its weights."
            )
        return (
            f"Not refuted: {sure} this training has {shown}; it claims "
            f"{round_up(claimed)}. A stronger attack might show more; it cannot be "
            "concluded that the claim holds."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; no score of a single example."""
        return {
            "claimed_epsilon": self.claimed[0],
            "delta": self.claimed[1],
            "confidence": self.confidence,
            "epsilon_lower_bound": self.epsilon,
            "refuted": self.refuted,
            "verdict": self.verdict(),
            "attacks": {
                name: {
                    "bounds": [dataclasses.asdict(bound) for bound in bounds],
                    **describe_roc(self.rocs[name]),
                }
                for name, bounds in self.bounds.items()
            },
        }


def describe_roc(curve: Roc) -> dict[str, Any]:
    """AUC and true positive rates with their intervals, for JSON."""
    return {
        "auc": curve.auc,
        "auc_interval": curve.auc_interval,
        "true_positive_rates": {
            f"{rate:g}": {"rate": value, "interval": [low, high]}
            for rate, (value, low, high) in curve.at.items()
        },
    }


class CanarySource(ExampleSource):
    """Private examples, then image canaries, then gradient canaries (black images).

    Args:
      source: the private examples.
      images: uint8 or float [n,H,W,C], as the source's.
      labels: int [n].
      gradients: how many gradient canaries.
    """

    def __init__(
        self,
        source: ExampleSource,
        images: np.ndarray,
        labels: np.ndarray,
        gradients: int,
    ):
        self._source = source
        blank = np.zeros((gradients, *source.image_shape), source.image_dtype)
        self._images = np.concatenate([images.astype(source.image_dtype), blank])
        self._labels = np.concatenate([labels, np.zeros(gradients)]).astype(np.int32)
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.image_dtype = source.image_dtype

    def __len__(self) -> int:
        """Number of examples, canaries included."""
        return len(self._source) + len(self._labels)

    def read(self, indices):
        """Reads examples and canaries."""
        indices = np.asarray(indices, np.int64)
        canaries = indices - len(self._source)
        ours = canaries >= 0
        images = np.empty((len(indices), *self.image_shape), self.image_dtype)
        labels = np.empty(len(indices), np.int32)
        images[~ours], labels[~ours] = self._source.read(indices[~ours])
        images[ours] = self._images[canaries[ours]]
        labels[ours] = self._labels[canaries[ours]]
        return images, labels


class _Listener:
    """A GaussianMechanism whose releases somebody hears.

    They are scaled up by `scale`: canaries make the batch larger, and the division by
    its expected size would slow down training.
    """

    def __init__(self, mechanism, heard, scale: float):
        self._mechanism, self._heard, self._scale = mechanism, heard, scale
        self.clip_norm = mechanism.clip_norm
        self.zero, self.add = mechanism.zero, mechanism.add

    def reseed(self, seed: int) -> None:
        self._mechanism.reseed(seed)

    def noisy_mean(self, total, update):
        noisy = self._mechanism.noisy_mean(total, update)
        self._heard(noisy)
        return [part * self._scale for part in noisy]


class CanaryModel(DPMixModel):
    """DPMixModel that trains on canaries, too, and listens to its own releases.

    Args:
      network: see DPMixModel, as are further keyword arguments.
      plan: for examples and canaries together.
      examples: how many private examples there are; canaries' ids follow.
      images: how many image canaries.
      gradients: how many gradient canaries, at most one a trainable weight.
      **settings: of DPMixModel.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        plan: PrivacyPlan,
        examples: int,
        images: int,
        gradients: int,
        **settings,
    ):
        super().__init__(network, plan=plan, **settings)
        weights = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
        if gradients > weights:
            raise DPMixError(
                f"gradient_canaries must be at most {weights}, the network's trainable "
                f"weights; received: {gradients}."
            )
        self._examples, self._images, self._weights = examples, images, weights
        places = np.random.default_rng(0).permutation(weights)[:gradients]
        self._places = tf.constant(places, tf.int32)
        self._included = tf.Variable(tf.zeros([images + gradients], tf.bool))
        self._scores = tf.Variable(tf.zeros([gradients]))
        self._without_canaries = None  # of the update being traced
        self._mechanism = _Listener(
            self._mechanism, self._hear, plan.num_examples / examples
        )

    @property
    def scores(self) -> np.ndarray:
        """Log-likelihood ratio of each gradient canary's being in, float32 [n]."""
        return self._scores.numpy()

    def include(self, included: np.ndarray) -> None:
        """Says which canaries are in: bool, image canaries first."""
        self._included.assign(included)

    def _clipped_sum(self, images, labels, ids, update):
        canary = tf.cast(ids, tf.int32) - self._examples
        coins = tf.concat([[True], self._included], 0)
        included = tf.gather(coins, tf.maximum(canary + 1, 0))
        ordinary = (canary < self._images) & included
        result = super()._clipped_sum(
            *(tf.boolean_mask(part, ordinary) for part in (images, labels, ids)), update
        )
        self._without_canaries = _flat(result.total)
        drawn = tf.boolean_mask(canary, (canary >= self._images) & included)
        places = tf.gather(self._places, drawn - self._images)
        canaries = self._sum_of_gradients(result.total, places)
        return result._replace(
            total=[
                part + self.plan.sensitivity * moved
                for part, moved in zip(result.total, canaries, strict=True)
            ]
        )

    def _sum_of_gradients(self, like, places):
        """Sums a record for each place: there it is ten clip norms, elsewhere zero."""
        chunk = max(1, min(64, _RECORDS_HELD // self._weights))
        sizes = [part.shape.num_elements() for part in like]

        def add_chunk(start, total):
            of_chunk = places[start : start + chunk]
            missing = chunk - tf.shape(of_chunk)[0]
            counted = tf.range(chunk) < chunk - missing
            records = tf.one_hot(
                tf.pad(of_chunk, [[0, missing]]),
                self._weights,
                on_value=_CANARY_LENGTH * self.plan.clip_norm,
            )
            parts = [
                tf.reshape(part, [chunk, *shaped.shape])
                for part, shaped in zip(
                    tf.split(tf.ensure_shape(records, [chunk, None]), sizes, 1),
                    like,
                    strict=True,
                )
            ]
            total, _ = self._mechanism.add(total, parts, counted)
            return start + chunk, total

        _, total = tf.while_loop(
            lambda start, _: start < tf.size(places),
            add_chunk,
            (tf.constant(0), self._mechanism.zero(like)),
            parallel_iterations=1,
        )
        return total

    def _hear(self, noisy):
        """What a noisy sum says of each gradient canary, added to its score.

        In units of how far one example may move the sum, it is N(0, sigma^2) at a
        canary's weight, and N(1, sigma^2) where the canary was drawn, with probability
        q if it is in.
        """
        plan = self.plan
        seen = _flat(noisy) * plan.expected_batch_size - self._without_canaries
        seen = tf.gather(seen, self._places) / (plan.sensitivity * plan.clip_norm)
        drawn = (2.0 * seen - 1.0) / (2.0 * plan.noise_multiplier**2)
        q = plan.sampling_probability
        ratio = drawn + np.log(q)
        if q < 1:
            not_drawn = tf.fill(ratio.shape, tf.constant(np.log1p(-q), tf.float32))
            ratio = tf.reduce_logsumexp([ratio, not_drawn], axis=0)
        self._scores.assign_add(ratio)

    def start_again(self, state: list[np.ndarray], seed: int) -> None:
        """Back to before the first update, with another seed.

        Args:
          state: values of `state()`, group after group.
          seed: as for DPMixModel.
        """
        for variable, value in zip(_all(self.state()), state, strict=True):
            variable.assign(value)
        self._most_updates = 0  # each run is audited by itself; none is released
        self._view_stream.seed.assign(randomness.derive(seed, "views"))
        self._mechanism.reseed(seed)
        self._scores.assign(tf.zeros_like(self._scores))


def _flat(parts):
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def _all(state):
    return [variable for variables in state.values() for variable in variables]


class _Experiment:
    """A config's training with canaries, to be run once or many times."""

    def __init__(self, config: ConfigDict, images: int, gradients: int, seed: int):
        self.config, self.images, self.gradients = config, images, gradients
        self.dataset = load_dataset(**config.data.to_dict())
        examples = len(self.dataset.train)
        self.claimed = make_plan(config, examples)
        if not self.claimed.noise_multiplier > 0:
            raise DPMixError(
                "A plan without noise claims nothing that could be audited."
            )
        # The same probability and noise for more examples: the same epsilon.
        count = examples + images + gradients
        self.plan = dataclasses.replace(
            self.claimed,
            num_examples=count,
            expected_batch_size=count * self.claimed.sampling_probability,
        )
        random = np.random.default_rng(randomness.derive(seed, "canaries").view("u8"))
        self.canary_images, self.canary_labels = _image_canaries(
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
                CanaryModel, examples=examples, images=images, gradients=gradients
            ),
        )

    def run(self, included: np.ndarray, seed: int, after_update=None):
        """Trains once; returns the scores of image and of gradient canaries."""
        self.model.include(included)
        batches = PoissonBatches(self.source, self.plan, seed=seed)
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: after_update and after_update()
        )
        self.model.fit(batches, verbose=0, callbacks=[callback])
        return self._losses(), self.model.scores

    def _losses(self):
        if not self.images:
            return np.zeros(0)
        logits = self.model(self.canary_images).numpy().astype(np.float64)
        return -_losses(logits, self.canary_labels)


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy, [n]."""
    return special.logsumexp(logits, 1) - logits[np.arange(len(labels)), labels]


def _image_canaries(dataset: Dataset, count: int, random: np.random.Generator):
    """Test images with wrong labels, and as many images of noise."""
    mislabelled = (count + 1) // 2
    classes = len(dataset.class_names)
    if mislabelled > len(dataset.test):
        raise DPMixError(
            f"image_canaries must be at most {2 * len(dataset.test)}, twice the test "
            f"images; received: {count}."
        )
    chosen = random.choice(len(dataset.test), mislabelled, replace=False)
    images, labels = dataset.test.read(chosen)
    wrong = (labels + random.integers(1, classes, mislabelled)) % classes
    noise = random.random((count - mislabelled, *dataset.image_shape))
    if images.dtype == np.uint8:
        noise = noise * 255
    return (
        np.concatenate([images, noise.astype(images.dtype)]),
        np.concatenate([wrong, random.integers(0, classes, len(noise))]),
    )


def audit_one_run(
    config: ConfigDict,
    *,
    image_canaries: int = 100,
    gradient_canaries: int = 5_000,
    confidence: float = 0.95,
    seed: int | None = None,
) -> Audit:
    """Trains once, as `config` says, with canaries, and bounds epsilon.

    Args:
      config: see training/config.py; its seed is not used.
      image_canaries: even, at most twice the test images; 0 for none.
      gradient_canaries: at most one a trainable weight; 0 for none.
      confidence: of all bounds together, in (0, 1).
      seed: of everything, to repeat an audit.

    Returns:
      Audit.

    Raises:
      DPMixError: a config that does not train, or a number out of range.
    """
    _check_confidence(confidence)
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

    Runs start at the same weights and differ in noise, views, sampling and coins.

    Args:
      config: see training/config.py; a run should be short.
      runs: 20 or more. No bound exceeds about log(runs / 4).
      confidence: see audit_one_run, as are the other arguments.
      seed: of everything.

    Returns:
      Audit.

    Raises:
      DPMixError: see audit_one_run; too few runs.
    """
    _check_confidence(confidence)
    if runs < 20:
        raise DPMixError(f"runs must be 20 or more, received: {runs}.")
    seed = randomness.fresh_seed() if seed is None else seed
    experiment = _Experiment(config, 1, 1, seed)
    start = [variable.numpy() for variable in _all(experiment.model.state())]
    random = np.random.default_rng(randomness.derive(seed, "coins").view("u8"))
    included = random.random((runs, 2)) < 0.5
    scores = np.empty((runs, 2))
    for run in tqdm(range(runs), unit="run"):
        own = int.from_bytes(randomness.derive(seed, f"run {run}").tobytes(), "big")
        experiment.model.start_again(start, own)
        losses, ratios = experiment.run(included[run], own)
        scores[run] = losses[0], ratios[0]
    attacks = {
        "black box, an image canary": (scores[:, 0], included[:, 0]),
        "white box, a gradient canary": (scores[:, 1], included[:, 1]),
    }
    return _conclude(experiment, attacks, confidence, independent=True)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DPMixError(f"confidence must be in (0, 1), received: {confidence}.")


def _conclude(
    experiment: _Experiment,
    attacks: dict[str, tuple[np.ndarray, np.ndarray]],
    confidence: float,
    *,
    independent: bool,
) -> Audit:
    """Bounds from scores; together they hold with the confidence asked for."""
    each = 1 - (1 - confidence) / (2 * len(attacks))
    delta, bounds, rocs = experiment.plan.delta, {}, {}
    for name, (scores, included) in attacks.items():
        arguments = {"scores": scores, "included": included, "confidence": each}
        if independent:
            found = [clopper_pearson_bound(**arguments, delta=delta)]
        else:
            found = [one_run_bound(**arguments, delta=delta)]
        if name.startswith("white box"):
            # Scores of gradient canaries are independent if the plan is kept.
            found.append(gaussian_bound(**arguments, plan=experiment.plan))
        bounds[name] = found
        rocs[name] = roc(scores, included, confidence=each)
    return Audit((experiment.claimed.epsilon(), delta), confidence, bounds, rocs)


def attack_membership(
    workdir: str | Path,
    *,
    data_dir: str | None = None,
    confidence: float = 0.95,
) -> dict[str, Roc]:
    """Tells a finished run's training examples from test examples, as far as it can.

    Two scores, neither of which trains other networks: the loss (Yeom et al. 2018); and
    how far the true class's log-odds lie above those of other examples of the class,
    in their standard deviations (the global, offline form of LiRA, Carlini et al. 2022,
    with half of the test set in the shadow models' place).

    Args:
      workdir: of a run.
      data_dir: where the data lies now; default where it was for training.
      confidence: of the intervals, in (0, 1).

    Returns:
      Attack -> Roc. At most 5,000 examples of each side are used.

    Raises:
      DPMixError: no run, no checkpoint, or other data.
    """
    _check_confidence(confidence)
    network, metadata = restore_network(workdir)
    dataset = restore_data(workdir, metadata, data_dir=data_dir)
    losses, odds, labels = {}, {}, {}
    for name, source in (("in", dataset.train), ("out", dataset.test)):
        random = np.random.default_rng(0)
        chosen = random.permutation(len(source))[:_MOST_MEMBERS]
        images, labels[name] = source.read(chosen)
        logits = network.predict(as_float(images), batch_size=500, verbose=0)
        losses[name] = _losses(logits.astype(np.float64), labels[name])
        odds[name] = -np.log(np.expm1(np.maximum(losses[name], 1e-12)))
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
        "loss": curve(-losses["in"], -losses["out"]),
        "log-odds against the class": curve(scores["in"], scores["out"][half:]),
    }


def _standardised(odds, labels, reference, reference_labels):
    """By mean and deviation of the reference's class; by all where it has too few."""
    scores = (odds - reference.mean()) / (reference.std() + 1e-12)
    for label in np.unique(labels):
        of_class = reference[reference_labels == label]
        if len(of_class) >= 5:
            ours = labels == label
            scores[ours] = (odds[ours] - of_class.mean()) / (of_class.std() + 1e-12)
    return scores


def draw_rocs(
    rocs: dict[str, Roc], path: str | Path, *, claimed: tuple[float, float] | None
) -> None:
    """Draws ROCs with logarithmic axes; and what the claim allows.

    Args:
      rocs: attack -> Roc.
      path: PNG file to write.
      claimed: (epsilon, delta), above whose line no true rate may lie.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 5))
    styles = ["-", "--", "-.", ":"]
    for (name, curve), style in zip(rocs.items(), styles, strict=False):
        axes.plot(
            curve.false_positive_rates,
            curve.true_positive_rates,
            style,
            drawstyle="steps-post",
            label=f"{name}: AUC {curve.auc:.3f}",
        )
    rates = np.geomspace(1e-5, 1, 200)
    axes.plot(rates, rates, color="grey", linewidth=0.8, label="guessing")
    if claimed is not None:
        epsilon, delta = claimed
        factor = np.exp(min(epsilon, 50.0))
        allowed = np.minimum(factor * rates + delta, 1 - (1 - rates - delta) / factor)
        axes.plot(
            rates,
            np.clip(allowed, 0, 1),
            color="black",
            linewidth=0.8,
            label=f"most that epsilon = {round_up(epsilon)} allows",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(1e-4, 1),
        ylim=(1e-4, 1.05),
        xlabel="share of others taken for members",
        ylabel="share of members found",
    )
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
    pyplot.close(figure)
