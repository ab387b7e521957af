r"""Accuracy at equal person-level epsilon: people as records, or images one by one.

  python benchmarks/people.py --data=digits --output=docs/people
  python benchmarks/people.py --data=cifar10 --data_dir=$HOME/tensorflow_datasets \
      --output=docs/people

Images are dealt out to people of 1 to 20 images, by a fixed seed. The arms are a linear
head on features of wavelet scattering, trained with the same number of updates, the
same sampling probability and automatic clipping:

- images: plain DP-SGD of single images. Its epsilon protects an image, not a person.
- group: the same with so much noise that it protects a person with 20 images.
- people: a person is one record of up to 8 views, one per image.
- people, mixed: with as many views again, blends of two of the person's views.

Rates are tuned per arm and epsilon on validation images; what is reported are test
images, the last update's weights, over seeds that all arms share. A run that is done is
kept in --cache_dir, so that the same command resumes.
"""

import dataclasses
import json
import time
from pathlib import Path

import keras
import numpy as np
from absl import app, flags, logging
from scipy import optimize
from timing import machine

from dpmix_tf import models, views
from dpmix_tf.data import PeopleSource, PoissonBatches, load_dataset
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import DPMixModel, encode_views
from dpmix_tf.training.evaluation import Evaluator

_DATA = flags.DEFINE_enum("data", "digits", ["digits", "cifar10"], "Images.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's folder.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images; default: all.")
_EPSILONS = flags.DEFINE_list("epsilons", ["1", "4", "8"], "At the level of a person.")
_RATES = flags.DEFINE_list("rates", ["0.1", "0.3", "1", "3"], "To choose from.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Test runs of each arm at each epsilon.")
_UPDATES = flags.DEFINE_integer("updates", 60, "Of every run.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the page and its figures.")
_CACHE = flags.DEFINE_string("cache_dir", "runs/people", "Folder of features and runs.")

_MOST = 20  # images of a person
_SLOTS = 8  # images of a person that an update reads
_PROBABILITY = 0.4
ARMS = ("images", "group", "people", "people, mixed")


def dealt_out(source, seed=0):
    """The images as those of people with 1 to 20 of them."""
    random, owners = np.random.default_rng(seed), np.empty(len(source), int)
    order, start, person = random.permutation(len(source)), 0, 0
    while start < len(source):
        size = int(random.integers(1, _MOST + 1))
        owners[order[start : start + size]] = person
        start, person = start + size, person + 1
    return PeopleSource(source, owners, max_images=_SLOTS)


def plan_of(arm, people, epsilon, delta):
    """The plan of an arm; that of images one by one holds for an image alone."""
    records = len(people) if arm.startswith("people") else len(people.examples)
    settings = {
        "num_examples": records,
        "expected_batch_size": _PROBABILITY * records,
        "updates": _UPDATES.value,
        "delta": delta,
        "clipping": "automatic",
        "record": "person" if arm.startswith("people") else "example",
    }
    plan = PrivacyPlan.for_epsilon(epsilon=epsilon, **settings)
    if arm != "group":
        return plan

    def above(noise):
        noisy = dataclasses.replace(plan, noise_multiplier=noise)
        return noisy.epsilon(group_size=_MOST) - epsilon

    low, high = plan.noise_multiplier, 4.0 * _MOST * plan.noise_multiplier
    noise = optimize.brentq(above, low, high, rtol=1e-3)
    return dataclasses.replace(plan, noise_multiplier=1.002 * noise)


class Comparison:
    """All runs on one data set, each made once."""

    def __init__(self):
        """Loads the data; features are made by the first run that needs them."""
        data = load_dataset(
            _DATA.value, data_dir=_DATA_DIR.value, train_examples=_EXAMPLES.value
        )
        self.data, self.people = data, dealt_out(data.train)
        self.delta = 1e-4 if len(self.people) < 9_000 else 1e-5
        self.folder = Path(_CACHE.value)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done_path = self.folder / f"{_DATA.value}-{len(data.train)}.json"
        text = self.done_path.read_text() if self.done_path.exists() else "{}"
        self.done = json.loads(text)
        self.plans = {}

    def _maker(self, arm):
        if not arm.startswith("people"):
            return views.ViewMaker(visits=1)
        mixed = _SLOTS if arm == "people, mixed" else 0
        return views.ViewMaker(base=_SLOTS, mixed=mixed, visits=2)

    def run(self, arm, epsilon, rate, seed, part):
        """Accuracy on a part of the data."""
        key = json.dumps([arm, epsilon, rate, seed, part, _UPDATES.value])
        if key in self.done:
            return self.done[key]
        if (arm, epsilon) not in self.plans:
            plan = plan_of(arm, self.people, epsilon, self.delta)
            self.plans[arm, epsilon] = plan
        plan = self.plans[arm, epsilon]
        source = self.people if arm.startswith("people") else self.people.examples
        keras.utils.set_random_seed(seed)
        network = models.scattering_network(
            input_shape=self.data.image_shape, num_classes=10, features="scattering"
        )
        encoded = encode_views(
            network, self._maker(arm), source, cache_dir=self.folder / "cache"
        )
        model = DPMixModel(network, plan=plan, views=encoded, seed=seed)
        model.compile(keras.optimizers.SGD(rate, momentum=0.9))
        model.fit(PoissonBatches(source, plan, seed=seed), verbose=0)
        evaluator = Evaluator(
            model,
            batch_size=500,
            cache_dir=self.folder / "cache",
            cache_dtype="float16",
        )
        score = evaluator.score(getattr(self.data, part)).overall
        self.done[key] = score
        write_text_atomic(self.done_path, json.dumps(self.done, indent=1))
        return score

    def table(self):
        """For each arm and epsilon: the rate that was chosen, and test accuracies."""
        found = {}
        for arm in ARMS:
            for epsilon in map(float, _EPSILONS.value):
                started = time.perf_counter()
                tried = {
                    rate: self.run(arm, epsilon, rate, 1_000, "validation")
                    for rate in map(float, _RATES.value)
                }
                rate = max(tried, key=tried.get)
                tests = [
                    self.run(arm, epsilon, rate, seed, "test")
                    for seed in range(1, 1 + _SEEDS.value)
                ]
                found[f"{arm} | {epsilon:g}"] = {
                    "rate": rate,
                    "validation": tried,
                    "test": tests,
                }
                took = time.perf_counter() - started
                print(f"{arm}, epsilon {epsilon:g}: {tests} ({took:.0f} s)", flush=True)
        return found


def page(comparison, found):
    """The result as Markdown."""
    epsilons = [f"{float(each):g}" for each in _EPSILONS.value]
    people, images = comparison.people, len(comparison.people.examples)
    lines = [
        f"# People as records: {_DATA.value}",
        "",
        f"{images:,} images dealt out to {len(people):,} people of 1 to {_MOST} "
        f"images; {_UPDATES.value} updates, sampling probability {_PROBABILITY}, delta "
        f"= {comparison.delta:g}, automatic clipping, a linear head on wavelet "
        f"scattering; test accuracy in percent, last update's weights, mean (standard "
        f"error) over {_SEEDS.value} seeds. Rates chosen out of "
        f"{', '.join(_RATES.value)} on validation images.",
        "",
        f"| arm | protects | {' | '.join(f'epsilon {e}' for e in epsilons)} |",
        f"| --- | --- | {' | '.join('---' for _ in epsilons)} |",
    ]
    for arm in ARMS:
        cells = []
        for epsilon in epsilons:
            tests = 100 * np.array(found[f"{arm} | {epsilon}"]["test"])
            error = tests.std(ddof=1) / len(tests) ** 0.5 if len(tests) > 1 else 0.0
            cells.append(f"{tests.mean():.2f} ({error:.2f})")
        what = "one image only" if arm == "images" else "a person"
        lines.append(f"| {arm} | {what} | {' | '.join(cells)} |")
    lines += [
        "",
        machine(),
        "",
        "```bash",
        f"python benchmarks/people.py --data={_DATA.value}",
    ]
    return "\n".join([*lines, "```"]) + "\n"


def main(_):
    """Makes all runs; prints and writes the page."""
    logging.set_verbosity(logging.ERROR)
    comparison = Comparison()
    found = comparison.table()
    text = page(comparison, found)
    print(text)
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder / f"{_DATA.value}.md", text)
        write_text_atomic(
            folder / f"{_DATA.value}.json", json.dumps(found, indent=2) + "\n"
        )


if __name__ == "__main__":
    app.run(main)
