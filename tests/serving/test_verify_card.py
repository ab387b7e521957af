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
from dpmix_tf.serving.card_blocks import composition_of, meaning_of
from dpmix_tf.serving.privacy_card import check_card, read_card
from tests.conftest import ROOT
from tests.serving.cards import card_of, plan_of

TEST_PLAN = counts_plan(300, 5.0, 1e-5)
RELEASE = {
    "noise": 5.0,
    "epsilon": TEST_PLAN.epsilon(),
    "delta": 1e-5,
    "accountant": "pld",
    "record": "example",
    "records": 300,
}
AUDIT = {
    "epsilon_lower_bound": 0.5,
    "confidence": 0.95,
    "claimed_epsilon": plan_of().epsilon(),
    "delta": 1e-5,
    "refuted": False,
    "canaries": 1000,
}
EARLIER = plan_of(noise_multiplier=2.0, updates=20)


@pytest.fixture(scope="module")
def good():
    made = card_of(
        plan_of(), before=[EARLIER], made_of={"test_release": copy.deepcopy(RELEASE)}
    )
    return check_card(made | {"audit": AUDIT}, "The card")


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
    "noised accuracy": dict(plan=plan_of(), made_of={"test_release": RELEASE}),
    "noised by a known seed": dict(
        plan=plan_of(),
        conditions=[CHOSEN_SEED],
        made_of={"test_release": RELEASE | {"epsilon": None}},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_card_that_was_made_agrees_with_itself(name):
    card = card_of(**GOOD[name])
    checks = verify_card.check_numbers(card)
    assert not wrong(card) and checks
    text = verify_card.to_text(checks)
    assert f"All {len(checks)} checks agree" in text and "DIFFERS" not in text
    unclaimed = "agrees   epsilon: none: no guarantee is claimed" in text
    none = ("a chosen seed", "no noise", "noised by a known seed")
    assert unclaimed == (name in none)


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
    numbers = {"meaning.mu", "meaning.true_positive_rates.0.01"}
    assert wrong(card) >= numbers | {"mechanism.composition"}
    card["meaning"] = meaning_of(both, plan.delta, card["privacy"]["epsilon"])
    card["mechanism"]["composition"] = composition_of(both)
    assert not wrong(card)
    released = [one["release"] for one in card["mechanism"]["composition"]]
    assert released == ["training", "class counts"]


@pytest.fixture
def older():
    """A card of version 1, as that version wrote it."""
    return read_card(ROOT / "tests" / "serving" / "card_version_1.json")


def test_cards_of_version_1_agree_and_their_edits_are_caught(older):
    assert older["schema_version"] == 1 and not wrong(older)
    halve_epsilon(older)
    assert wrong(older) == {"epsilon"}


def test_cards_from_before_some_fields_agree(older):
    del older["warning"], older["privacy"]["seed_origin"], older["privacy"]["record"]
    assert not wrong(check_card(older, "The card"))
    del older["privacy"]["ledger"]
    assert wrong(check_card(older, "The card")) == {"ledger"}


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


def lower_mu(card):
    card["meaning"]["mu"] *= 0.99


def lower_an_attack(card):
    card["meaning"]["true_positive_rates"]["0.01"] *= 0.99


def lower_the_advantage(card):
    card["meaning"]["advantage"] *= 0.99


def claim_no_limit_of_mu(card):
    card["meaning"]["mu"] = None


def leave_out_the_meaning(card):
    card["meaning"] = None


def leave_out_a_release(card):
    del card["mechanism"]["composition"][0]


def change_a_release(card):
    card["mechanism"]["composition"][0]["noise_multiplier"] *= 2


def change_clipping(card):
    card["mechanism"].update(clipping="automatic", gamma=0.01)


def claim_no_variant(card):
    card["mechanism"]["variant"] = None


def claim_tuning(card):
    card["tuning"] = {
        "trials": 20,
        "trials_distribution": "poisson",
        "score_noise": None,
    }


def halve_the_cost_of_testing(card):
    card["test_release"]["epsilon"] /= 2


def raise_the_noise_of_testing(card):
    card["test_release"]["noise"] *= 2


def other_test_records(card):
    card["test_release"]["record"] = "person"


def audit_another_plan(card):
    card["audit"] = AUDIT | {"claimed_epsilon": 2 * AUDIT["claimed_epsilon"]}


def hide_a_refutation(card):
    card["audit"] = AUDIT | {"epsilon_lower_bound": AUDIT["claimed_epsilon"] + 1}


EDITS = [
    (halve_epsilon, {"epsilon"}),
    (lower_mu, {"meaning.mu"}),
    (lower_an_attack, {"meaning.true_positive_rates.0.01"}),
    (lower_the_advantage, {"meaning.advantage"}),
    (claim_no_limit_of_mu, {"meaning.mu"}),
    (leave_out_the_meaning, {"meaning"}),
    (leave_out_a_release, {"mechanism.composition"}),
    (change_a_release, {"mechanism.composition"}),
    (change_clipping, {"mechanism.clipping", "mechanism.gamma"}),
    (claim_no_variant, {"mechanism.variant"}),
    (claim_tuning, {"tuning"}),
    (halve_the_cost_of_testing, {"test_release.epsilon"}),
    (raise_the_noise_of_testing, {"test_release.epsilon"}),
    (other_test_records, {"test_release.record"}),
    (audit_another_plan, {"audit.claimed_epsilon"}),
    (hide_a_refutation, {"audit.refuted"}),
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
