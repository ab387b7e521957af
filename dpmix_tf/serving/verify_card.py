"""Recomputes a privacy card from its own numbers, for whoever receives a model.

A card says more than once what it says: epsilon follows from the ledger's plans and
updates, and the plan's fields stand beside it. Whoever edits one of them has to edit
all of them, and then epsilon is another one. This shows that a card is consistent; that
a training run was as the card describes it, it cannot show.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy import ledger as conditions
from dpmix_tf.privacy.ledger import CHOSEN, SYSTEM
from dpmix_tf.privacy.plan import EXAMPLE, round_up
from dpmix_tf.privacy.statement import (
    SEED_WARNINGS,
    adjacency,
    choice_in_words,
    seed_origin,
)
from dpmix_tf.serving.card_blocks import (
    composition_of,
    is_audit_of,
    meaning_of,
    release_epsilon,
    tuning_of,
    variant_of,
)
from dpmix_tf.serving.privacy_card import read_card
from dpmix_tf.views import NaiveMixup, ViewMaker

# Other versions of dp_accounting, and other processors, may round a little differently.
_TOLERANCE = 1e-4
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_GUARANTEE = re.compile(
    rf"publishing the weights after ([\d,]+) updates is \({_NUMBER}, {_NUMBER}\)-"
    rf"differentially private: epsilon = {_NUMBER}, delta = {_NUMBER}\. "
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a card says, beside what follows from the rest of it.

    Attributes:
      name: what it is.
      stated: what the card says; JSON-able.
      expected: what it would have to say; JSON-able.
      source: where `expected` comes from, in words.
      agrees: whether the two are the same.
    """

    name: str
    stated: Any
    expected: Any
    source: str
    agrees: bool


def verify_card(path: str | Path) -> list[Check]:
    """Reads a card and checks it against itself.

    Args:
      path: as read_card takes it.

    Returns:
      All checks, those that agree and those that do not.

    Raises:
      DPMixError: there is no card, or it does not follow the schema, or its ledger
        describes no plans.
    """
    return check_numbers(read_card(path), str(path))


def check_numbers(card: dict[str, Any], where: str = "The card") -> list[Check]:
    """Checks a card that follows the schema against itself; see verify_card."""
    privacy = card["privacy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deltas: whoever made the card saw them
        ledger = Ledger.from_list(privacy.get("ledger", []), where)
    if not ledger.entries:
        return [
            _check(
                "ledger",
                "no updates",
                f"{privacy['updates']} updates",
                "updates; without a ledger nothing can be recomputed",
                agrees=privacy["updates"] == 0 and not privacy["epsilon"],
            )
        ]
    plan = _main_plan(privacy, ledger)
    checks = [
        *_of_epsilon(card, ledger, plan),
        *_of_plan(card, ledger, plan),
        *_of_seed(card, ledger),
    ]
    if card["schema_version"] == 1:
        return checks
    return [
        *checks,
        *_of_meaning(card, ledger),
        *_of_mechanism(card, ledger, plan),
        *_of_test_release(card, ledger),
    ]


def to_text(checks: list[Check]) -> str:
    """The checks as lines, and what they mean together."""
    lines = [
        f"agrees   {check.name}: {_shown(check.stated)}"
        if check.agrees
        else f"DIFFERS  {check.name}: the card says {_shown(check.stated)}; expected "
        f"{_shown(check.expected)}, from {check.source}"
        for check in checks
    ]
    wrong = sum(not check.agrees for check in checks)
    if wrong:
        end = (
            f"{wrong} of {len(checks)} checks fail: this card contradicts itself. Do "
            "not rely on it."
        )
    else:
        end = (
            f"All {len(checks)} checks agree: the card follows from its own numbers. "
            "Whether the training run was as they say, the card cannot show."
        )
    return "\n".join([*lines, "", end])


def _main_plan(privacy: dict[str, Any], ledger: Ledger) -> PrivacyPlan:
    """The plan that the card is about: the last of those that most of it describes."""
    stated = _fields(privacy)
    plans = [
        entry.plan
        for entry in ledger.entries
        if conditions.CLASS_COUNTS not in entry.conditions
    ] or [entry.plan for entry in ledger.entries]

    def alike(plan: PrivacyPlan) -> int:
        return sum(getattr(plan, name) == value for name, value in stated.items())

    return max(reversed(plans), key=alike)


def _fields(privacy: dict[str, Any]) -> dict[str, Any]:
    """What a card says of its plan, by the plan's names."""
    names = (
        *("delta", "accountant", "expected_batch_size", "noise_multiplier"),
        *("clip_norm", "sensitivity"),
    )
    return {name: privacy[name] for name in names} | {
        "updates": privacy["planned_updates"],
        "record": privacy.get("record", EXAMPLE),  # absent in older cards
    }


def _of_epsilon(
    card: dict[str, Any], ledger: Ledger, plan: PrivacyPlan
) -> Iterator[Check]:
    privacy = card["privacy"]
    epsilon = ledger.epsilon(privacy["delta"], privacy["accountant"])
    source = "the ledger's plans and updates, composed at the card's delta"
    none = "none: no guarantee is claimed"
    if seed_origin(ledger) == CHOSEN:
        stated = none if privacy["epsilon"] is None else privacy["epsilon"]
        yield _check("epsilon", stated, none, "the seed, which the user chose")
    elif math.isinf(epsilon):
        stated = none if privacy["epsilon"] is None else privacy["epsilon"]
        yield _check("epsilon", stated, none, source)
    else:
        yield _check(
            "epsilon",
            privacy["epsilon"],
            epsilon,
            source,
            agrees=privacy["epsilon"] is not None
            and math.isclose(privacy["epsilon"], epsilon, rel_tol=_TOLERANCE),
        )
    found = _GUARANTEE.search(card["statement"])
    if math.isinf(epsilon):
        yield _check(
            "statement's epsilon", found and found[2], None, "a ledger without one"
        )
        return
    trained = ledger.without_counts()
    updates = f"{sum(trained.by_plan().values()):,}"
    said = ["nothing"] * 5 if found is None else list(found.groups())
    yield _check("statement's updates", said[0], updates, "the ledger")
    rounded, delta = round_up(epsilon), f"{privacy['delta']:g}"
    for stated in (said[1], said[3]):
        # It is rounded up, to three decimals.
        close = found is not None and math.isclose(
            float(stated), float(rounded), rel_tol=_TOLERANCE, abs_tol=1.1e-3
        )
        yield _check("statement's epsilon", stated, rounded, source, agrees=close)
    for stated in (said[2], said[4]):
        yield _check("statement's delta", stated, delta, "the card's delta")


def _of_plan(
    card: dict[str, Any], ledger: Ledger, plan: PrivacyPlan
) -> Iterator[Check]:
    privacy = card["privacy"]
    for name, value in _fields(privacy).items():
        shown = "planned_updates" if name == "updates" else name
        yield _check(shown, value, getattr(plan, name), "the ledger's plan")
    yield _check(
        "sampling_probability",
        privacy["sampling_probability"],
        plan.sampling_probability,
        "expected_batch_size / num_examples of the ledger's plan",
        agrees=math.isclose(
            privacy["sampling_probability"], plan.sampling_probability, rel_tol=1e-12
        ),
    )
    examples = card["training_data"]["num_examples"]
    yield _check("num_examples", examples, plan.num_examples, "the ledger's plan")
    updates = ledger.updates(plan)
    yield _check("updates", privacy["updates"], updates, "the ledger")
    after = card["model"]["after_update"]
    yield _check(
        "model.after_update",
        after,
        f"at most {updates}",
        "the ledger",
        after <= updates,
    )
    blended = card["views"]["microbatch"] is not None
    maker = NaiveMixup if blended else ViewMaker
    yield _check(
        "views",
        f"sensitivity {privacy['sensitivity']:g}",
        f"sensitivity {maker.sensitivity:g}",
        "views.microbatch: whether examples are blended",
    )
    yield _check("adjacency", privacy["adjacency"], adjacency(plan), "record")
    finite = math.isfinite(ledger.epsilon(privacy["delta"], privacy["accountant"]))
    if finite:
        words = f"Adjacency: {adjacency(plan)}."
        stated = words if words in card["statement"] else "something else"
        yield _check("statement's adjacency", stated, words, "record")


def _of_seed(card: dict[str, Any], ledger: Ledger) -> Iterator[Check]:
    privacy, expected = card["privacy"], seed_origin(ledger)
    chosen = privacy["seed_chosen_by_user"]
    yield _check(
        "seed_chosen_by_user", chosen, expected == CHOSEN, "the ledger's conditions"
    )
    if "seed_origin" in privacy:  # absent in older cards
        origin = privacy["seed_origin"]
        yield _check("seed_origin", origin, expected, "the ledger's conditions")
    else:
        origin = CHOSEN if chosen else SYSTEM
    if "warning" in card:
        warning = SEED_WARNINGS[origin]
        yield _check("warning", card["warning"], warning, "seed_origin")
        if warning is not None:
            begins = card["statement"].startswith(warning)
            first = warning if begins else card["statement"].split("\n")[0]
            yield _check("statement's warning", first, warning, "seed_origin")


def _of_meaning(card: dict[str, Any], ledger: Ledger) -> Iterator[Check]:
    privacy, stated = card["privacy"], card["meaning"]
    epsilon: float | None = ledger.epsilon(privacy["delta"], privacy["accountant"])
    if seed_origin(ledger) == CHOSEN or math.isinf(epsilon or 0.0):
        epsilon = None
    expected = meaning_of(ledger, privacy["delta"], epsilon)
    if stated is None or expected is None:
        said, right = (
            "none: no guarantee" if each is None else "limits to attacks"
            for each in (stated, expected)
        )
        yield _check("meaning", said, right, "the ledger's plans and updates")
        return
    source = "the trade-off curve of the ledger's plans and updates"
    for name, limit in _flat(expected).items():
        value = _flat(stated)[name]
        agrees = _close(value, limit)
        yield _check(f"meaning.{name}", value, limit, source, agrees)


def _flat(meaning: dict[str, Any]) -> dict[str, float | None]:
    rates = meaning["true_positive_rates"].items()
    return {
        **{name: meaning[name] for name in ("mu", "advantage")},
        **{f"true_positive_rates.{rate}": found for rate, found in rates},
    }


def _of_mechanism(
    card: dict[str, Any], ledger: Ledger, plan: PrivacyPlan
) -> Iterator[Check]:
    stated, source = card["mechanism"], "the ledger's plan"
    composed = composition_of(ledger)
    yield _check("mechanism.composition", stated["composition"], composed, "the ledger")
    variant = variant_of(card["privacy"]["epsilon"] is not None)
    yield _check("mechanism.variant", stated["variant"], variant, "epsilon")
    yield _check("mechanism.clipping", stated["clipping"], plan.clipping, source)
    gamma = plan.gamma if plan.clipping == "automatic" else None
    yield _check("mechanism.gamma", stated["gamma"], gamma, source)
    yield _check("tuning", card["tuning"], tuning_of(plan), source)
    if plan.choice:
        words = choice_in_words(plan)
        said = words if words in card["statement"] else "something else"
        yield _check("statement's choice", said, words, source)
    audit = card["audit"]
    if audit is None:
        return
    yield _check(
        "audit.claimed_epsilon",
        audit["claimed_epsilon"],
        plan.epsilon(),
        f"{source}, all of its updates made",
        agrees=is_audit_of(audit, plan),
    )
    refuted = audit["epsilon_lower_bound"] > audit["claimed_epsilon"]
    yield _check("audit.refuted", audit["refuted"], refuted, "the audit's bound")


def _of_test_release(card: dict[str, Any], ledger: Ledger) -> Iterator[Check]:
    release = card["test_release"]
    if release is None:
        return
    cost = release_epsilon(release, seed_origin(ledger))
    yield _check(
        "test_release.epsilon",
        release["epsilon"],
        cost,
        "its noise: one Gaussian release at its delta",
        agrees=_close(release["epsilon"], cost),
    )
    record = card["privacy"]["record"]
    yield _check("test_release.record", release["record"], record, "record")


def _close(stated: float | None, expected: float | None) -> bool:
    if stated is None or expected is None:
        return stated is expected
    return math.isclose(stated, expected, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _check(
    name: str, stated: Any, expected: Any, source: str, agrees: bool | None = None
) -> Check:
    agrees = stated == expected if agrees is None else agrees
    return Check(
        name=name, stated=stated, expected=expected, source=source, agrees=bool(agrees)
    )


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
