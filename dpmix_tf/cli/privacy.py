r"""Computes one of epsilon, noise, updates and batch size from the other three.

python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --epsilon=8 --updates=2400 --batch_size=4096
python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --noise_multiplier=3 --updates=2500 --batch_size=4096 --picture=epsilon.png
python bin/privacy.py --num_examples=50000 --delta=1e-5 \
      --epsilon=8 --updates=2400 --batch_size=4096 --group_size=5
python bin/privacy.py --num_examples=50000 --delta=1e-5 --updates=2400 \
      --batch_size=4096 --explain --epsilons=1,4,8 --picture=attacks.png
python bin/privacy.py --num_examples=50000 --delta=1e-5 --updates=2400 \
      --batch_size=4096 --attack_success=0.1 --at_fpr=0.01
python bin/privacy.py --num_examples=50000 --delta=1e-5 --updates=2400 \
      --batch_size=4096 --epsilon=8 --trials=6
python bin/privacy.py --num_examples=50000 --delta=1e-5 --explain --output=privacy.html
python bin/privacy.py --card=models/digits --explain
python bin/privacy.py --card=models/digits --registry > entry.yaml
python bin/privacy.py --verify=models/digits
"""

import functools
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

from dpmix_tf.cli import cards, common, explain, explain_page
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, accounting, attacks
from dpmix_tf.privacy.plan import finite_or_none, round_up
from dpmix_tf.privacy.selection import DISTRIBUTIONS
from dpmix_tf.privacy.statement import state_guarantee

T = TypeVar("T")

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
_TRIALS = flags.DEFINE_float(
    "trials",
    1.0,
    "Above 1: the best of so many trainings on average is published, see bin/tune.py; "
    "--updates are those of one (RDP).",
)
_DISTRIBUTION = flags.DEFINE_enum(
    "distribution", "poisson", list(DISTRIBUTIONS), "Of the number of --trials."
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "json"], "Output format.")
_PICTURE = flags.DEFINE_string(
    "picture",
    None,
    "Write a plot to this PNG file: epsilon against updates, or with --explain the "
    "most that attacks can find.",
)
_EXPLAIN = flags.DEFINE_bool(
    "explain", False, "Say what epsilon means: the most that any attack can find."
)
_EPSILONS = flags.DEFINE_list(
    "epsilons", None, "Explain these epsilons beside each other, such as 1,4,8."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "With --explain: write a page with sliders over epsilon, batch size and updates to "
    "this HTML file. Takes minutes.",
)
_BATCHES = flags.DEFINE_list(
    "batch_sizes", None, "Batch sizes of --output, such as 500,1000."
)
_SEVERAL_UPDATES = flags.DEFINE_list(
    "numbers_of_updates", None, "Numbers of updates of --output, such as 100,1000."
)
_SUCCESS = flags.DEFINE_float(
    "attack_success",
    None,
    "Instead of --epsilon: the largest true-positive rate of any attack at --at_fpr.",
)
_AT_FPR = flags.DEFINE_float(
    "at_fpr", 0.01, "The false-positive rate of --attack_success."
)
_AUDIT = flags.DEFINE_string(
    "audit", None, "An audit.json of bin/audit.py, drawn into the plot of --explain."
)
_CARD = flags.DEFINE_string(
    "card", None, "Print the privacy card of this exported model, or --explain it."
)
_REGISTRY = flags.DEFINE_bool(
    "registry", False, "Print --card as an entry of the OpenDP deployments registry."
)
_VERIFY = flags.DEFINE_string(
    "verify",
    None,
    "Recompute the privacy card of this exported model; exit status 1 if it is wrong.",
)


def _main(argv: list[str]) -> None:
    _check_flags()
    as_json = _FORMAT.value == "json"
    if _VERIFY.value is not None:
        cards.verify(_VERIFY.value, as_json)
    elif _CARD.value is not None and _EXPLAIN.value:
        _explain_card(_CARD.value)
    elif _CARD.value is not None and _REGISTRY.value:
        cards.print_entry(_CARD.value)
    elif _CARD.value is not None:
        cards.print_card(_CARD.value, as_json)
    elif _OUTPUT.value is not None:
        _write_page()
    elif _EPSILONS.value is not None:
        _explain([_explained(_with_warnings(plan)) for plan in _plans_of_epsilons()])
    else:
        _answer(_with_warnings(_solve))


def _check_flags() -> None:
    """Refuses flags that would do nothing."""
    for flag in (_EPSILONS, _AUDIT, _OUTPUT):
        if flag.value is not None and not _EXPLAIN.value:
            raise DPMixError(f"--{flag.name} is for --explain: give that too.")
    for flag in (_BATCHES, _SEVERAL_UPDATES):
        if flag.value is not None and _OUTPUT.value is None:
            raise DPMixError(f"--{flag.name} is for --output: give that too.")
    _check_flags_of_page()
    if _REGISTRY.value and (_CARD.value is None or _EXPLAIN.value):
        raise DPMixError("Give --registry with --card, and without --explain.")
    if _AUDIT.value is not None and not _PICTURE.value:
        raise DPMixError("--audit is drawn into --picture: give that too.")
    if _VERIFY.value is not None and (_CARD.value is not None or _EXPLAIN.value):
        raise DPMixError("Give --verify alone, not with --card or --explain.")
    if _EPSILONS.value is not None and (_CARD.value or _SUCCESS.value is not None):
        raise DPMixError("Give --epsilons without --card and --attack_success.")


def _check_flags_of_page() -> None:
    """Refuses flags that a page with sliders leaves no room for."""
    alone = (_EPSILON, _NOISE, _UPDATES, _BATCH, _SUCCESS, _PICTURE, _CARD)
    for flag in alone if _OUTPUT.value is not None else ():
        if flag.value is not None:
            raise DPMixError(
                f"--output writes a page of many plans; it does not go with "
                f"--{flag.name}. Give --epsilons, --batch_sizes and "
                "--numbers_of_updates instead, or none."
            )
    others = _GROUP.value > 1 or _FORMAT.value == "json" or _TRIALS.value != 1
    if _OUTPUT.value is not None and others:
        raise DPMixError("Give --output without --group_size, --format and --trials.")


def _with_warnings(make: Callable[[], T]) -> T:
    """Makes a plan, or a grid of them, and prints what it warns about."""
    common.require(num_examples=_NUM_EXAMPLES.value, delta=_DELTA.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    for text in {str(warning.message) for warning in caught}:
        print(f"warning: {text}", file=sys.stderr)
    return made


def _answer(plan: PrivacyPlan) -> None:
    """Prints the plan, its guarantee and, if asked to, what it means."""
    size = _GROUP.value
    group_epsilon = plan.epsilon(group_size=size)
    statement = state_guarantee(Ledger.planned(plan), plan, size)
    explained = [_explained(plan)] if _EXPLAIN.value else []
    if _FORMAT.value == "json":
        answer = plan.to_dict() | {
            "sampling_probability": plan.sampling_probability,
            "epsilon": finite_or_none(plan.epsilon()),
            "group_size": size,
            "group_epsilon": finite_or_none(group_epsilon),
            "statement": statement,
        }
        if explained:
            answer["explained"] = [each.to_dict() for each in explained]
        print(json.dumps(answer, indent=2))
    else:
        of_group = [(f"epsilon, group of {size}", round_up(group_epsilon))]
        mean = f"{plan.trials:g}, {plan.trials_distribution}"
        trials = [("trials, mean number", mean)] if plan.choice else []
        for name, value in (
            ("epsilon", round_up(plan.epsilon())),
            *(of_group if size > 1 else []),
            ("delta", f"{plan.delta:g}"),
            ("noise multiplier", f"{plan.noise_multiplier:.4f}"),
            *trials,
            ("updates", f"{plan.updates:,}"),
            ("expected batch size", f"{plan.expected_batch_size:g}"),
            ("sampling probability", f"{plan.sampling_probability:.6g}"),
        ):
            print(f"{name:<21} {value}")
        print("\n" + statement)
        if explained:
            print("\n" + explain.to_text(explained))
    if _PICTURE.value and not explained:
        explain.draw_epsilon(plan, _PICTURE.value)
        print(f"\nPicture written to {_PICTURE.value}")
    _draw(explained)


def _explained(plan: PrivacyPlan) -> explain.Explained:
    return explain.explain(
        Ledger.planned(plan),
        delta=plan.delta,
        accountant=plan.accountant,
        group_size=_GROUP.value,
    )


def _explain(explained: list[explain.Explained]) -> None:
    """Prints and draws what guarantees mean, and nothing else."""
    if _FORMAT.value == "json":
        answer = {"explained": [each.to_dict() for each in explained]}
        print(json.dumps(answer, indent=2))
    else:
        print(explain.to_text(explained))
    _draw(explained)


def _draw(explained: list[explain.Explained]) -> None:
    if _PICTURE.value and explained:
        explain.draw(explained, _PICTURE.value, _AUDIT.value)
        print(f"\nPicture written to {_PICTURE.value}")


def _plans_of_epsilons() -> list[Callable[[], PrivacyPlan]]:
    """Plans of --epsilons, still to be solved for."""
    common.require(updates=_UPDATES.value, batch_size=_BATCH.value)
    if _EPSILON.value is not None or _NOISE.value is not None:
        raise DPMixError("Give --epsilons without --epsilon and --noise_multiplier.")
    epsilons = _numbers(_EPSILONS, float)
    return [functools.partial(_for_epsilon, epsilon) for epsilon in epsilons]


def _numbers(flag: flags.FlagHolder, kind: type) -> list[Any]:
    try:
        return [kind(text) for text in flag.value]
    except ValueError as error:
        raise DPMixError(
            f"--{flag.name} must be numbers such as 1,4,8: {error}."
        ) from error


def _write_page() -> None:
    given = {
        name: _numbers(flag, kind)
        for name, flag, kind in (
            ("epsilons", _EPSILONS, float),
            ("batch_sizes", _BATCHES, float),
            ("updates", _SEVERAL_UPDATES, int),
        )
        if flag.value is not None
    }
    grid = _with_warnings(
        lambda: explain_page.grid_for(
            num_examples=_NUM_EXAMPLES.value,
            delta=_DELTA.value,
            accountant=_ACCOUNTANT.value,
            **given,
        )
    )
    explain_page.write_page(_OUTPUT.value, grid)
    print(f"Page written to {_OUTPUT.value}")


def _explain_card(path: str) -> None:
    explained = cards.explain_card(path, _GROUP.value)
    _explain([explained])


def _for_epsilon(epsilon: float) -> PrivacyPlan:
    return PrivacyPlan.for_epsilon(
        epsilon=epsilon,
        delta=_DELTA.value,
        num_examples=_NUM_EXAMPLES.value,
        expected_batch_size=_BATCH.value,
        updates=_UPDATES.value,
        **_how(),
    )


def _how() -> dict[str, Any]:
    """The plan's fields that are not solved for."""
    accountant = _ACCOUNTANT.value
    if _TRIALS.value != 1 and not flags.FLAGS["accountant"].present:
        accountant = "rdp"  # the only one that knows the cost of a choice
    return {
        "accountant": accountant,
        "trials": _TRIALS.value,
        "trials_distribution": _DISTRIBUTION.value,
    }


def _for_attack() -> PrivacyPlan:
    """Makes the plan that keeps every attack's success below what was asked for."""
    if _EPSILON.value is not None or _NOISE.value is not None:
        raise DPMixError(
            "--attack_success is given instead of --epsilon and --noise_multiplier."
        )
    common.require(updates=_UPDATES.value, batch_size=_BATCH.value)
    return attacks.plan_for_attack(
        attack_success=_SUCCESS.value,
        at_fpr=_AT_FPR.value,
        delta=_DELTA.value,
        num_examples=_NUM_EXAMPLES.value,
        expected_batch_size=_BATCH.value,
        updates=_UPDATES.value,
        **_how(),
    )


def _solve() -> PrivacyPlan:
    """Makes the plan, solving for whichever of the four quantities is missing."""
    if _SUCCESS.value is not None:
        return _for_attack()
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
                **_how(),
                **changes,
            }
        )

    if missing == ["epsilon"]:
        return plan()
    if _EPSILON.value <= 0:
        raise DPMixError(f"epsilon must be above 0, received: {_EPSILON.value}.")
    if missing == ["noise_multiplier"]:
        return _for_epsilon(_EPSILON.value)
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


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
