"""Privacy cards made without training anything."""

from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.ledger import Entry
from dpmix_tf.serving.privacy_card import check_card, make_card
from tests.serving.conftest import small_config

SOFTWARE = {
    "dpmix_tf": "0.1.0",
    "tensorflow": "2.21.0",
    "keras": "3.12.0",
    "dp-accounting": "0.4.3",
    "git_revision": None,
}


def plan_of(**changes):
    return PrivacyPlan(
        **{
            "num_examples": 1294,
            "expected_batch_size": 32,
            "updates": 60,
            "noise_multiplier": 1.2,
            "delta": 1e-5,
            **changes,
        }
    )


def card_of(
    plan,
    *,
    before=(),
    updates=50,
    conditions=(),
    told=None,
    names=("0", "1"),
    weights="ema",
    made_of=None,
    **views,
):
    """A card of `updates` updates under a plan, after all of those before.

    `told` is config.card's; `made_of` are further arguments of make_card.
    """
    entries = [
        Entry(run=f"before {number}", plan=one, updates=one.updates)
        for number, one in enumerate(before)
    ]
    entries += Ledger.planned(plan, updates, conditions).entries
    config = small_config().to_dict()
    config["views"] |= views
    config["card"] |= told or {}
    metadata = {
        "plan": plan.to_dict(),
        "updates": updates,
        "class_names": list(names),
        "image_shape": [8, 8, 1],
        "software": SOFTWARE,
        "views_per_example": 3,
        "pool_digest": None,
    }
    card = make_card(
        metadata=metadata,
        config=config,
        ledger=Ledger(tuple(entries)),
        weights=weights,
        parameters=10,
        **{"final": None, **(made_of or {})},
    )
    return check_card(card, "The card")
