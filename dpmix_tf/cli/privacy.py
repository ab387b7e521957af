r"""Computes one of epsilon, noise, updates and batch size from the other three.

python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --epsilon=8 --updates=2400 --batch_size=4096
python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --noise_multiplier=3 --updates=2500 --batch_size=4096 --picture=epsilon.png
python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --epsilon=8 --updates=2400 --batch_size=4096 --group_size=5
python bin/privacy.py --card=models/digits
"""

import json
import sys
import warnings

from absl import flags

from dpmix_tf import plotting
from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic
from dpmix_tf.privacy import Ledger, PrivacyPlan, accounting
from dpmix_tf.privacy.plan import finite_or_none, round_up
from dpmix_tf.privacy.statement import state_guarantee

_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", None, "Number of training examples, N."
)
_DELTA = flags.DEFINE_float("delta", None, "Delta, well below 1 / num_examples.")
_EPSILON = flags.DEFINE_float("epsilon", None, "The privacy budget.")
_NOISE = flags.DEFINE_float(
    "noise_multiplier", None, "Standard deviation of the noise over the clip norm."
)
_UPDATES = flags.DEFINE_integer("updates", None, "Number of noisy updates.")
_BATCH = flags.DEFINE_float("batch_size", None, "Expected batch size, N times q.")
_ACCOUNTANT = flags.DEFINE_enum(
    "accountant", "pld", list(accounting.ACCOUNTANTS), "PLD is tighter, RDP faster."
)
_GROUP = flags.DEFINE_integer(
    "group_size",
    1,
    "Above 1: say too what holds for people with at most so many examples (PLD).",
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "json"], "Output format.")
_PICTURE = flags.DEFINE_string(
    "picture", None, "Write a plot of epsilon against updates to this PNG file."
)
_CARD = flags.DEFINE_string(
    "card", None, "Print the privacy card of this exported model, and nothing else."
)


def _main(argv: list[str]) -> None:
    if _CARD.value is not None:
        _print_card(_CARD.value)
        return
    common.require(num_examples=_NUM_EXAMPLES.value, delta=_DELTA.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = _solve()
    size = _GROUP.value
    group_epsilon = plan.epsilon(group_size=size)
    statement = state_guarantee(Ledger.planned(plan), plan, size)
    for text in {str(warning.message) for warning in caught}:
        print(f"warning: {text}", file=sys.stderr)
    if _FORMAT.value == "json":
        answer = plan.to_dict() | {
            "sampling_probability": plan.sampling_probability,
            "epsilon": finite_or_none(plan.epsilon()),
            "group_size": size,
            "group_epsilon": finite_or_none(group_epsilon),
            "statement": statement,
        }
        print(json.dumps(answer, indent=2))
    else:
        of_group = [(f"epsilon, group of {size}", round_up(group_epsilon))]
        for name, value in (
            ("epsilon", round_up(plan.epsilon())),
            *(of_group if size > 1 else []),
            ("delta", f"{plan.delta:g}"),
            ("noise multiplier", f"{plan.noise_multiplier:.4f}"),
            ("updates", f"{plan.updates:,}"),
            ("expected batch size", f"{plan.expected_batch_size:g}"),
            ("sampling probability", f"{plan.sampling_probability:.6g}"),
        ):
            print(f"{name:<21} {value}")
        print("\n" + statement)
    if _PICTURE.value:
        draw_curve(plan, _PICTURE.value)


def _print_card(path: str) -> None:
    start_tensorflow()
    from dpmix_tf.serving.privacy_card import read_card, to_markdown

    card = read_card(path)
    as_json = _FORMAT.value == "json"
    print(json.dumps(card, indent=2) if as_json else to_markdown(card), end="")


def _solve() -> PrivacyPlan:
    """Makes the plan, solving for whichever of the four quantities is missing."""
    given = {
        "epsilon": _EPSILON.value,
        "noise_multiplier": _NOISE.value,
        "updates": _UPDATES.value,
        "batch_size": _BATCH.value,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise DPMixError(
            "Give exactly three of --epsilon, --noise_multiplier, --updates and "
            f"--batch_size; missing: {', '.join(missing) or 'none'}."
        )

    def plan(**changes) -> PrivacyPlan:
        return PrivacyPlan(
            **{
                "noise_multiplier": _NOISE.value,
                "delta": _DELTA.value,
                "num_examples": _NUM_EXAMPLES.value,
                "expected_batch_size": _BATCH.value,
                "updates": _UPDATES.value,
                "accountant": _ACCOUNTANT.value,
                **changes,
            }
        )

    if missing == ["epsilon"]:
        return plan()
    if _EPSILON.value <= 0:
        raise DPMixError(f"epsilon must be above 0, received: {_EPSILON.value}.")
    if missing == ["noise_multiplier"]:
        return PrivacyPlan.for_epsilon(
            epsilon=_EPSILON.value,
            delta=_DELTA.value,
            num_examples=_NUM_EXAMPLES.value,
            expected_batch_size=_BATCH.value,
            updates=_UPDATES.value,
            accountant=_ACCOUNTANT.value,
        )
    field, limit = (
        ("updates", 10**9)
        if missing == ["updates"]
        else ("expected_batch_size", _NUM_EXAMPLES.value)
    )
    plan(**{field: 1})  # refuses bad values before the search
    most = accounting.largest_integer(
        lambda value: plan(**{field: value}).epsilon() <= _EPSILON.value, limit
    )
    if most == 0:
        raise DPMixError(
            f"Even {field} = 1 costs epsilon = "
            f"{round_up(plan(**{field: 1}).epsilon())}, more than {_EPSILON.value}. "
            "Raise the noise multiplier."
        )
    return plan(**{field: most})


def draw_curve(plan: PrivacyPlan, path: str) -> None:
    """Plots epsilon against updates, by both accountants, as a PNG."""
    import dataclasses

    pyplot = plotting.pyplot()
    count = min(plan.updates, 25)
    updates = sorted({max(1, plan.updates * i // count) for i in range(count + 1)})
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for accountant, style in (("pld", "-"), ("rdp", "--")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = dataclasses.replace(plan, accountant=accountant)
        epsilons = [other.epsilon(update) for update in updates]
        axes.plot(updates, epsilons, style, color="black", label=accountant.upper())
    axes.set(
        xlabel="updates",
        ylabel=f"epsilon at delta = {plan.delta:g}",
        title=f"noise multiplier {plan.noise_multiplier:.3g}, "
        f"q = {plan.sampling_probability:.4g}",
        ylim=(0, None),
    )
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    print(f"\nPicture written to {path}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
