r"""The suggested rate beside tuned ones.

  python benchmarks/suggested.py
  python benchmarks/suggested.py runs/suggested/digits_scattering_3 ...

Without folders: what the rule gives for the reports on linear heads in docs/, of whose
tried rates the nearest one is compared with the best one.

With folders of configs/experiments/suggested.py, a row for each: means of validation
accuracy in percent over the seeds of the trials, and the difference to the best of the
tried rates, paired by seed, with its standard error.
"""

import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from dpmix_tf.experiments.study import CHOSEN_BY
from dpmix_tf.files import local_path
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training.suggest import linear_rate

DOCS = Path(__file__).parent.parent / "docs"
# Report -> how its arms were trained, the length of their features, and the momentum.
# Left out are group-normalised features, of which 10 is the largest norm and not the
# usual one.
_CIFAR10 = dict(num_examples=45_000, expected_batch_size=8192, updates=240, delta=1e-5)
_FASHION = _CIFAR10 | {"num_examples": 54_000}
_PHOTOS = dict(num_examples=432, expected_batch_size=108, updates=60, delta=1e-4)
REPORTS = {
    "no_public_data": (_CIFAR10, 10.0, 0.9),
    "no_public_data_2_4": (_CIFAR10, 10.0, 0.9),
    "no_public_data_steps": (_CIFAR10, 10.0, 0.9),
    "fashion_mnist": (_FASHION, 10.0, 0.9),
    "encoder_arms": (_PHOTOS, math.sqrt(200), 0.0),
}


def trials(report):
    """Of a report: arm, epsilon, the rule's rate, the nearest and the best tried."""
    settings, features, momentum = REPORTS[report]
    text = (DOCS / report / "report.md").read_text()
    row = r"^\| (\w+) \| ([\d.]+) \| learning_rate = [\d.]+ \| (.*?) \|"
    for arm, epsilon, tried in re.findall(row, text, re.MULTILINE):
        if arm == "group_norm":
            continue
        pairs = re.findall(r"learning_rate = ([\d.]+): ([\d.]+)", tried)
        accuracies = {float(rate): float(accuracy) for rate, accuracy in pairs}
        plan = PrivacyPlan.for_epsilon(epsilon=float(epsilon), **settings)
        rate = linear_rate(plan, features=features, momentum=momentum)
        nearest = min(accuracies, key=lambda each: abs(math.log(each / rate)))
        best = max(accuracies, key=accuracies.get)
        yield arm, epsilon, rate, nearest, best, accuracies


def print_reports():
    """Prints a row for each arm and epsilon of the reports."""
    print("| report | arm | epsilon | rule | nearest tried | best tried | behind |")
    print("|---|---|---|---|---|---|---|")
    for report in REPORTS:
        for arm, epsilon, rate, nearest, best, accuracies in trials(report):
            behind = accuracies[best] - accuracies[nearest]
            print(
                f"| {report} | {arm} | {epsilon} | {rate:.2g} | {nearest:g}: "
                f"{accuracies[nearest]:.2f} | {best:g}: {accuracies[best]:.2f} | "
                f"{behind:.2f} |"
            )


def row(folder):
    """What the trials in one experiment's folder say."""
    accuracies, epsilons = defaultdict(dict), set()
    for line in (local_path(folder) / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["tuning"]:
            rate = record["tuned"]["optimizer.learning_rate"]
            last = record["curve"][-1][CHOSEN_BY]
            accuracies[rate][record["seed"]] = 100 * last
            epsilons.add(record["epsilon"])
    (epsilon,) = epsilons
    rates = sorted(accuracies)
    seeds = sorted(accuracies[rates[0]])
    table = np.array([[accuracies[rate][seed] for seed in seeds] for rate in rates])
    means = table.mean(axis=1)
    middle, best = len(rates) // 2, int(means.argmax())
    behind = (table[middle] - table[best]).round(9)
    error = behind.std(ddof=1) / len(seeds) ** 0.5
    tried = " / ".join(f"{mean:.2f}" for mean in means)
    name = local_path(folder).name
    return (
        f"| {name} | {epsilon:g} | {rates[middle]:g} | {tried} | {rates[best]:g} | "
        f"{behind.mean().round(9) + 0.0:.2f} ({error:.2f}) |"
    )


def print_runs(folders):
    """Prints a row for each folder."""
    print(
        "| experiment | epsilon | suggested rate | at 1/4, 1/2, 1, 2 and 4 times it "
        "| best rate | suggested less best |"
    )
    print("|---|---|---|---|---|---|")
    for folder in folders:
        print(row(folder))


if __name__ == "__main__":
    print_runs(sys.argv[1:]) if sys.argv[1:] else print_reports()
