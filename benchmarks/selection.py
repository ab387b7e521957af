"""What choosing among a drawn number of trials costs: a table for docs/tuning.md.

python benchmarks/selection.py --num_examples=50000 --batch_size=4096 --updates=2400

For each epsilon, distribution and mean number of trials: the noise multiplier with
which everything together costs that epsilon, relative to a single training's, and the
epsilon of everything if the noise stays a single training's. By Renyi divergences.
"""

import dataclasses
import json

from absl import app, flags

from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.privacy.selection import DISTRIBUTIONS

_EXAMPLES = flags.DEFINE_integer("num_examples", 50_000, "Training examples.")
_BATCH = flags.DEFINE_float("batch_size", 4096, "Expected batch size.")
_UPDATES = flags.DEFINE_integer("updates", 2400, "Updates of one training.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta.")
_EPSILONS = flags.DEFINE_list("epsilons", ["1", "8"], "Of everything together.")
_TRIALS = flags.DEFINE_list("trials", ["3", "6", "10", "30", "100"], "Mean numbers.")
_JSON = flags.DEFINE_string("json", None, "Write the numbers to this file too.")


def _costs(epsilon: float) -> list[dict]:
    settings = dict(
        num_examples=_EXAMPLES.value,
        expected_batch_size=_BATCH.value,
        updates=_UPDATES.value,
        delta=_DELTA.value,
        accountant="rdp",
    )
    single = PrivacyPlan.for_epsilon(epsilon=epsilon, **settings)
    found = []
    for distribution in DISTRIBUTIONS:
        for trials in map(float, _TRIALS.value):
            chosen = {"trials": trials, "trials_distribution": distribution}
            plan = PrivacyPlan.for_epsilon(epsilon=epsilon, **settings, **chosen)
            found.append(
                {
                    "epsilon": epsilon,
                    **chosen,
                    "noise": plan.noise_multiplier / single.noise_multiplier,
                    "spent": dataclasses.replace(single, **chosen).epsilon(),
                }
            )
    return found


def _main(argv: list[str]) -> None:
    results = [row for text in _EPSILONS.value for row in _costs(float(text))]
    heads = [f"{trials} on average" for trials in _TRIALS.value]
    print(f"| epsilon | trials | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(_TRIALS.value))
    for text in _EPSILONS.value:
        for distribution in DISTRIBUTIONS:
            cells = [
                f"{row['noise']:.2f} x noise, or epsilon {round_up(row['spent'])}"
                for row in results
                if row["epsilon"] == float(text)
                and row["trials_distribution"] == distribution
            ]
            print(f"| {text} | {distribution} | {' | '.join(cells)} |")
    if _JSON.value:
        write_text_atomic(_JSON.value, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(_main)
