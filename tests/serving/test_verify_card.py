"""A card that follows from its own numbers, and cards that somebody has edited."""

import copy
import json

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.counts import counts_plan
from dpmix_tf.privacy.ledger import (
    CHOSEN_SEED,
    CLASS_COUNTS,
    SHARED_SEED,
    Entry,
    Ledger,
)
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.privacy.statement import state_guarantee
from dpmix_tf.serving import verify_card
from tests.serving.cards import card_of, plan_of

EARLIER = plan_of(noise_multiplier=2.0, updates=20)


@pytest.fixture(scope="module")
def good():
    return card_of(plan_of(), before=[EARLIER])


def wrong(card):
    checks = verify_card.check_numbers(card)
    return {check.name for check in checks if not check.agrees}


GOOD = {
    "two plans": dict(plan=plan_of(), before=[EARLIER]),
    "RDP": dict(plan=plan_of(accountant="rdp")),
    "people": dict(plan=plan_of(record="person")),
    "mixup": dict(plan=plan_of(sensitivity=2.0), microbatch=4),
    "a chosen seed": dict(plan=plan_of(), conditions=[CHOSEN_SEED]),
    "a shared seed": dict(plan=plan_of(), conditions=[SHARED_SEED]),
    "no noise": dict(plan=plan_of(noise_multiplier=0.0)),
    "no updates": dict(plan=plan_of(), updates=0),
    "all updates": dict(plan=plan_of(clipping="automatic"), updates=60),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_card_that_was_made_agrees_with_itself(name):
    card = card_of(**GOOD[name])
    checks = verify_card.check_numbers(card)
    assert not wrong(card) and checks
    text = verify_card.to_text(checks)
    assert f"All {len(checks)} checks agree" in text and "DIFFERS" not in text
    unclaimed = "agrees   epsilon: none: no guarantee is claimed" in text
    assert unclaimed == (name in ("a chosen seed", "no noise"))


def test_class_counts_are_composed_but_are_not_the_cards_plan(good):
    plan, counts = plan_of(), counts_plan(1294, noise_multiplier=20.0, delta=1e-5)
    entry = Entry(
        run="counts", plan=counts, updates=1, conditions=frozenset([CLASS_COUNTS])
    )
    both = Ledger.planned(plan, 50).joined(Ledger((entry,)))
    card = card_of(plan)
    card["privacy"]["ledger"] = both.to_list()
    assert "epsilon" in wrong(card)
    card["privacy"]["epsilon"] = both.epsilon(plan.delta)
    card["statement"] = state_guarantee(both, plan)
    assert not wrong(card)


def test_cards_from_before_some_fields_agree(good):
    card = copy.deepcopy(good)
    del card["warning"], card["privacy"]["seed_origin"], card["privacy"]["record"]
    assert not wrong(card)


def halve_epsilon(card):
    card["privacy"]["epsilon"] /= 2


def change_updates(card):
    card["privacy"]["updates"] = 25


def change_updates_in_the_ledger(card):
    card["privacy"]["ledger"][-1]["updates"] = 49


def change_updates_in_both(card):
    card["privacy"]["updates"] = 49
    card["privacy"]["ledger"][-1]["updates"] = 49
    card["model"]["after_update"] = 49


def raise_noise_in_the_ledger(card):
    card["privacy"]["ledger"][-1]["plan"]["noise_multiplier"] = 1.3


def raise_noise_everywhere(card):
    card["privacy"]["noise_multiplier"] = 1.3
    raise_noise_in_the_ledger(card)


def change_delta(card):
    card["privacy"]["delta"] = 1e-6


def change_delta_everywhere(card):
    card["privacy"]["delta"] = 1e-4
    for entry in card["privacy"]["ledger"]:
        entry["plan"]["delta"] = 1e-4
    card["statement"] = card["statement"].replace("1e-05", "0.0001")


def change_sampling(card):
    card["privacy"]["sampling_probability"] /= 2


def change_batch(card):
    card["privacy"]["expected_batch_size"] = 16


def change_examples(card):
    card["training_data"]["num_examples"] = 60_000


def change_examples_in_the_ledger(card):
    card["privacy"]["ledger"][-1]["plan"]["num_examples"] = 60_000


def halve_the_statement(card):
    shown = round_up(card["privacy"]["epsilon"])
    half = round_up(card["privacy"]["epsilon"] / 2)
    assert card["statement"].count(shown) == 2
    card["statement"] = card["statement"].replace(shown, half)


def halve_once_in_the_statement(card):
    shown = round_up(card["privacy"]["epsilon"])
    card["statement"] = card["statement"].replace(f"epsilon = {shown}", "epsilon = 1.0")


def halve_both(card):
    halve_the_statement(card)
    halve_epsilon(card)


def replace_the_statement(card):
    card["statement"] = "This model is private."


def remove_the_last_entry(card):
    del card["privacy"]["ledger"][-1]


def remove_the_first_entry(card):
    del card["privacy"]["ledger"][0]


def empty_the_ledger(card):
    card["privacy"]["ledger"] = []


def remove_the_ledger(card):
    del card["privacy"]["ledger"]


def change_record(card):
    card["privacy"]["record"] = "person"


def change_adjacency(card):
    card["privacy"]["adjacency"] = "data sets that differ by half an example"


def change_adjacency_in_the_statement(card):
    card["statement"] = card["statement"].replace("one example (one", "two (one")


def change_sensitivity(card):
    card["privacy"]["sensitivity"] = 2.0


def blend(card):
    card["views"]["microbatch"] = 8


def choose_a_seed(card):
    card["privacy"]["seed_origin"] = "chosen"


def choose_a_seed_in_the_ledger(card):
    card["privacy"]["ledger"][0]["conditions"] = [CHOSEN_SEED]


def change_planned(card):
    card["privacy"]["planned_updates"] = 600


def change_weights(card):
    card["model"]["after_update"] = 51


EDITS = [
    (halve_epsilon, {"epsilon"}),
    (change_updates, {"updates"}),
    (change_updates_in_the_ledger, {"updates", "epsilon", "statement's updates"}),
    (change_updates_in_both, {"epsilon", "statement's updates"}),
    (raise_noise_in_the_ledger, {"epsilon", "noise_multiplier"}),
    (raise_noise_everywhere, {"epsilon", "statement's epsilon"}),
    (change_delta, {"epsilon", "delta", "statement's delta"}),
    (change_delta_everywhere, {"epsilon", "statement's epsilon"}),
    (change_sampling, {"sampling_probability"}),
    (change_batch, {"expected_batch_size"}),
    (change_examples, {"num_examples"}),
    (change_examples_in_the_ledger, {"num_examples", "sampling_probability"}),
    (halve_the_statement, {"statement's epsilon"}),
    (halve_once_in_the_statement, {"statement's epsilon"}),
    (halve_both, {"epsilon", "statement's epsilon"}),
    (replace_the_statement, {"statement's epsilon", "statement's adjacency"}),
    (remove_the_last_entry, {"epsilon", "updates", "noise_multiplier"}),
    (remove_the_first_entry, {"epsilon", "statement's updates"}),
    (empty_the_ledger, {"ledger"}),
    (remove_the_ledger, {"ledger"}),
    (change_record, {"record"}),
    (change_adjacency, {"adjacency"}),
    (change_adjacency_in_the_statement, {"statement's adjacency"}),
    (change_sensitivity, {"sensitivity", "views"}),
    (blend, {"views"}),
    (choose_a_seed, {"seed_origin", "warning", "statement's warning"}),
    (choose_a_seed_in_the_ledger, {"epsilon", "seed_origin", "seed_chosen_by_user"}),
    (change_planned, {"planned_updates"}),
    (change_weights, {"model.after_update"}),
]


@pytest.mark.parametrize(
    ("edit", "found"), EDITS, ids=lambda value: getattr(value, "__name__", "")
)
def test_edits_are_caught_by_name(edit, found, good):
    card = copy.deepcopy(good)
    edit(card)
    assert found <= wrong(card)
    text = verify_card.to_text(verify_card.check_numbers(card))
    assert "this card contradicts itself" in text
    assert all(f"DIFFERS  {name}: the card says" in text for name in found)


def test_a_card_whose_ledger_describes_no_plan_is_refused(good, tmp_path):
    card = copy.deepcopy(good)
    card["privacy"]["ledger"][0]["plan"]["noise_multiplier"] = -1
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card))
    with pytest.raises(DPMixError, match="noise_multiplier must be"):
        verify_card.verify_card(path)
    path.write_text(json.dumps(good))
    assert all(check.agrees for check in verify_card.verify_card(path))
