"""What version 2 of the privacy card adds, each part made from what the card knows.

The fields are those of the OpenDP registry of deployments and of NIST SP 800-226. Most
follow from the run. Those that only its owner knows come from `config.card`; where
nobody said, they are None, and a page says "not stated".
"""

import json
import math
from pathlib import Path
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.attacks import RATES, trade_off
from dpmix_tf.privacy.counts import counts_plan
from dpmix_tf.privacy.ledger import CHOSEN, CLASS_COUNTS
from dpmix_tf.privacy.plan import PERSON, finite_or_none

DEPLOYMENT = (
    *("curator", "curator_type", "purpose", "intended_use"),
    *("region", "contact", "access", "justification"),
)
_TUNING = ("trials", "trials_distribution", "score_noise")
_RELATIVE = 1e-3  # within which an audit's claim is the plan's
# Each is documented where it is used: privacy/mechanism.py, randomness.py, counts.py.
ARITHMETIC = {
    "gradient_sums_and_noise": "float32",
    "gradient_norms": "float64",
    "class_counts": "float64",
}
GENERATOR = {
    "noise": "Philox, as in TensorFlow",
    "sampling": "PCG64, as in NumPy",
    "seed": "128 secret bits",
    "cryptographic": False,
}


def deployment_of(config: dict[str, Any]) -> dict[str, str | None]:
    """Returns who releases the model and why; of config.json, older ones included."""
    told = config.get("card") or {}
    return {name: told.get(name) for name in DEPLOYMENT}


def meaning_of(
    ledger: Ledger, delta: float, epsilon: float | None
) -> dict[str, Any] | None:
    """Returns what the guarantee means: the most that any membership attack can do.

    Args:
      ledger: what was spent.
      delta: the card's.
      epsilon: at this delta; None where there is no guarantee.

    Returns:
      "mu" of Gaussian DP (None: there is none), "advantage", and the largest
      true-positive rate at each of RATES of false positives; None without a guarantee.
    """
    if epsilon is None:
        return None
    curve = trade_off(ledger, delta)
    return {
        "mu": finite_or_none(curve.mu),
        "advantage": curve.advantage,
        "true_positive_rates": {
            f"{rate:g}": curve.true_positive_rate(rate) for rate in RATES
        },
    }


def composition_of(ledger: Ledger) -> list[dict[str, Any]]:
    """Returns the releases that epsilon covers together, one per entry of a ledger."""
    return [
        {
            "release": "class counts"
            if CLASS_COUNTS in entry.conditions
            else "training",
            "updates": entry.updates,
            "noise_multiplier": entry.plan.noise_multiplier,
            "sampling_probability": entry.plan.sampling_probability,
        }
        for entry in ledger.entries
        if entry.updates
    ]


def variant_of(guaranteed: bool) -> str | None:
    """Returns the variant of differential privacy, the same wherever there is one."""
    return "approximate" if guaranteed else None


def mechanism_of(
    plan: PrivacyPlan,
    ledger: Ledger,
    config: dict[str, Any],
    *,
    weights: str,
    form: str,
    guaranteed: bool,
) -> dict[str, Any]:
    """Returns how the guarantee was reached.

    Args:
      plan: the run's.
      ledger: what was spent.
      config: the run's config.json.
      weights: "ema" or "raw".
      form: how the model is exported, in words.
      guaranteed: whether there is a guarantee.
    """
    optimizer = config["optimizer"]
    after = [f"the optimizer, {optimizer['name']}"]
    if optimizer.get("low_pass") is not None:
        after.append("a low-pass filter on the noisy gradients")
    if optimizer.get("kalman_gain") is not None:
        after.append("a Kalman filter on the noisy gradients")
    if weights == "ema":
        after.append("the average of the weights over updates")
    people = plan.record == PERSON
    return {
        "variant": variant_of(guaranteed),
        "deployment_model": "central",
        "composition": composition_of(ledger),
        "post_processing": [*after, f"export as {form}"],
        "clipping": plan.clipping,
        "gamma": plan.gamma if plan.clipping == "automatic" else None,
        "images_read_per_person": config["data"].get("max_images_per_person")
        if people
        else None,
        "arithmetic": ARITHMETIC,
        "random_generator": GENERATOR,
    }


def tuning_of(plan: PrivacyPlan) -> dict[str, Any] | None:
    """Returns a plan's private choice of hyperparameters, which its epsilon covers.

    Returns:
      The plan's fields about it; None where this was the only training.
    """
    return {name: getattr(plan, name) for name in _TUNING} if plan.choice else None


def release_epsilon(release: dict[str, Any], origin: str) -> float | None:
    """Recomputes what the noised test accuracy costs the test records, by its noise."""
    plan = counts_plan(
        release["records"],
        release["noise"],
        release["delta"],
        accountant=release["accountant"],
        record=release["record"],
    )
    return None if origin == CHOSEN else finite_or_none(plan.epsilon())


def read_audit(path: str | Path, plan: PrivacyPlan) -> dict[str, Any]:
    """Reads what bin/audit.py has found about trainings by a plan.

    Args:
      path: its audit.json.
      plan: of the run that is exported.

    Returns:
      "epsilon_lower_bound", "confidence", "claimed_epsilon" and "delta" of the audit,
      whether the claim is "refuted", and the number of "canaries".

    Raises:
      DPMixError: the file holds no audit of training, or that of another plan.
    """
    file = local_path(path, "--audit")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["training"]
        audit = {
            "epsilon_lower_bound": float(found["epsilon_lower_bound"]),
            "confidence": float(found["confidence"]),
            "claimed_epsilon": float(found["claimed_epsilon"]),
            "delta": float(found["delta"]),
            "refuted": bool(found["refuted"]),
            "canaries": sum(int(one["canaries"]) for one in found["attacks"].values()),
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DPMixError(
            f"{file} is not an audit of training: {error!r}. Expected the audit.json "
            "that bin/audit.py --config writes into its --workdir."
        ) from error
    if not is_audit_of(audit, plan):
        raise DPMixError(
            f"{file} audits another plan: it is about epsilon = "
            f"{audit['claimed_epsilon']:g} at delta = {audit['delta']:g}, and this "
            f"run's plan has epsilon = {plan.epsilon():g} at delta = {plan.delta:g}. "
            "Audit the run's own config."
        )
    return audit


def is_audit_of(audit: dict[str, Any], plan: PrivacyPlan) -> bool:
    """Returns whether an audit's claim is that of all the plan's updates."""
    return audit["delta"] == plan.delta and math.isclose(
        audit["claimed_epsilon"], plan.epsilon(), rel_tol=_RELATIVE
    )


def without_counts(figures: Any) -> Any:
    """Leaves out numbers of test examples of a class, which may be single people."""
    private = ("examples", "positives", "negatives", "prevalence", "size")
    if not isinstance(figures, dict):
        return figures
    return {
        name: without_counts(value)
        for name, value in figures.items()
        if name not in private
    }


def read_subgroups(path: str | Path, updates: int) -> dict[str, Any]:
    """Reads the figures by subgroup from what bin/evaluate.py --by=... printed.

    Args:
      path: a JSON file.
      updates: of the exported weights.

    Returns:
      Column -> name of the group -> its figures, without numbers of test examples.

    Raises:
      DPMixError: the file holds no such figures, or those of other weights.
    """
    file = local_path(path, "--evaluation")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        known = found["split"] == "test" and found["updates"] == updates
        groups = {
            name.removeprefix("by_").removesuffix("_ema"): value["groups"]
            for name, value in found.items()
            if name.startswith("by_")
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DPMixError(
            f"{file} is not an evaluation: {error!r}. Expected what bin/evaluate.py "
            "--by=... prints."
        ) from error
    if not known or not groups or "warning" in found:
        raise DPMixError(
            f"{file} does not hold figures by subgroup of test examples after update "
            f"{updates}, without a warning. Expected what bin/evaluate.py --by=... "
            "prints of this run."
        )
    return without_counts(groups)
