import dataclasses
import json

import keras
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.account import Account
from dpmix_tf.privacy.ledger import CONDITIONS, Entry, Ledger, record_history
from dpmix_tf.privacy.statement import state_guarantee
from tests.conftest import plan_for

PLAN = plan_for(100, updates=20)
OTHER = plan_for(100, updates=10, noise=2.0)
ledgers = st.lists(
    st.builds(
        Entry,
        run=st.sampled_from("abc"),
        plan=st.just(PLAN),
        updates=st.integers(0, 20),
        conditions=st.frozensets(st.sampled_from(CONDITIONS)),
    ),
    max_size=3,
    unique_by=lambda entry: entry.run,
).map(lambda entries: Ledger(tuple(entries)))


def variables(count=2):
    return [keras.Variable(0.0) for _ in range(count)]


def charged(account, times=1):
    for _ in range(times):
        account.charge(account.check(None))


def as_sets(ledger):
    return {entry.run: (entry.updates, entry.conditions) for entry in ledger.entries}


@given(ledgers, ledgers, ledgers)
def test_joining_never_loses_whatever_the_order(one, two, three):
    together = one.joined(two).joined(three)
    assert as_sets(together) == as_sets(three.joined(one.joined(two)))
    assert as_sets(together.joined(one)) == as_sets(together)
    for ledger in (one, two, three):
        assert together.updates(PLAN) >= ledger.updates(PLAN)
        assert together.conditions >= ledger.conditions


@given(ledgers)
def test_a_ledger_comes_back_from_json(ledger):
    again = Ledger.from_list(json.loads(json.dumps(ledger.to_list())), "x")
    assert again.by_plan() == {p: n for p, n in ledger.by_plan().items() if n} or (
        again.updates(PLAN) == ledger.updates(PLAN)
    )
    assert again.conditions == ledger.conditions


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [{}],
        [{"run": "a"}],
        3,
        [3],
        [{**Ledger.planned(PLAN).to_list()[0], "updates": -1}],
    ],
)
def test_a_damaged_ledger_is_refused(damaged):
    with pytest.raises(DPMixError, match="privacy.json does not say what was spent"):
        Ledger.from_list(damaged, "privacy.json")


def test_epsilon_composes_all_plans_at_one_delta():
    both = Ledger.planned(PLAN).joined(
        Ledger((Entry(run="b", plan=OTHER, updates=10),))
    )
    parts = PLAN.epsilon(), OTHER.epsilon()
    assert max(parts) < both.epsilon(PLAN.delta, "rdp") < sum(parts)
    twice = Ledger.planned(PLAN, 5).joined(
        Ledger((Entry(run="b", plan=PLAN, updates=5),))
    )
    assert twice.epsilon(PLAN.delta, "rdp") == PLAN.epsilon(10)
    assert Ledger().epsilon(1e-5) == 0


def test_an_account_numbers_updates_and_stops_at_the_plan():
    account = Account.open(variables(), OTHER)
    for number in range(10):
        assert account.next == number
        assert account.charge(account.check(tf.constant(number, tf.int64))) == number
    with pytest.raises(tf.errors.InvalidArgumentError, match="are spent"):
        account.check(None)


@pytest.mark.parametrize("number", [2, 4])
def test_only_the_next_update_is_made(number):
    account = Account.open(variables(), OTHER)
    charged(account, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="The batch is of update"):
        account.check(tf.constant(number, tf.int64))
    assert account.next == 3


def test_the_same_variables_under_the_same_plan_continue():
    shared = variables()
    first = Account.open(shared, PLAN)
    charged(first, 3)
    second = Account.open([shared[0], *variables()], PLAN)
    assert second.next == 3
    charged(second)
    assert first.next == 4 and first.ledger.updates(PLAN) == 4


def test_another_plan_is_composed_on_top():
    shared = variables()
    charged(Account.open(shared, PLAN), 3)
    second = Account.open(shared, OTHER)
    charged(second, 2)
    assert second.next == 2
    assert second.ledger.by_plan() == {PLAN: 3, OTHER: 2}


def test_two_networks_joined_into_one_count_both():
    left, right = variables(), variables()
    charged(Account.open(left, PLAN), 3)
    charged(Account.open(right, PLAN), 4)
    whole = Account.open([*left, *right], PLAN)
    assert whole.next == 7 and whole.ledger.updates(PLAN) == 7
    charged(whole)
    assert Ledger.of(left).updates(PLAN) == 4  # 3 of its own and 1 of the whole


def test_history_from_a_file_is_counted_once():
    shared = variables()
    account = Account.open(shared, PLAN)
    charged(account, 2)
    history = Ledger((Entry(run="elsewhere", plan=PLAN, updates=5),))
    for _ in range(2):
        account.absorb(history)
        assert account.next == 7
    account.absorb(account.ledger)
    assert account.next == 7
    older = Ledger((Entry(run="elsewhere", plan=PLAN, updates=1),))
    account.absorb(older)
    assert account.next == 7


def test_history_on_variables_is_found_by_a_later_model():
    shared = variables()
    record_history(shared, Ledger.planned(OTHER))
    account = Account.open(shared, PLAN)
    assert account.next == 0
    assert account.ledger.updates(OTHER) == 10


def test_a_resumed_run_is_the_same_run():
    first = Account.open(variables(), PLAN)
    charged(first, 3)
    first.note("chosen_seed")
    again = Account.open(variables(), PLAN)
    again.resume(first.ledger, first.run)
    assert as_sets(again.ledger) == as_sets(first.ledger) and again.next == 3
    charged(again, 2)
    assert first.ledger.joined(again.ledger).updates(PLAN) == 5
    with pytest.raises(DPMixError, match="only in a new model"):
        again.resume(first.ledger, first.run)


def test_a_run_resumes_on_layers_that_an_equal_plan_has_trained():
    earlier = Ledger((Entry(run="elsewhere", plan=PLAN, updates=5),))

    def opened():
        shared = variables()
        record_history(shared, earlier)
        return Account.open(shared, PLAN)

    first = opened()
    charged(first, 3)
    again = opened()
    again.resume(first.ledger, first.run)
    assert again.next == first.next == 8
    assert as_sets(again.ledger) == as_sets(first.ledger)


def test_the_statement_lists_every_plan_and_prices_the_choice():
    both = Ledger.planned(PLAN).joined(Ledger((Entry(run="b", plan=OTHER, updates=4),)))
    text = state_guarantee(both, OTHER)
    assert "trained under 2 plans" in text
    assert "(1) in 20 updates" in text and "(2) in 4 updates" in text
    whole = both.joined(Ledger((Entry(run="c", plan=OTHER, updates=6),)))
    epsilon = whole.epsilon(OTHER.delta, "rdp")
    shown = float(text.split("costs epsilon = ")[1].split(".\n")[0])
    assert epsilon <= shown < epsilon + 0.0011
    finished = state_guarantee(Ledger.planned(OTHER), OTHER)
    assert "Choosing them" not in finished


def test_a_chosen_seed_comes_first():
    text = state_guarantee(Ledger.planned(PLAN, 4, ["chosen_seed"]), PLAN)
    assert text.startswith("No guarantee while the seed is known")
    assert "used for this run alone" in text


def test_what_holds_of_a_run_is_told():
    text = state_guarantee(Ledger.planned(PLAN, 4, CONDITIONS), PLAN)
    for words in ("cannot vouch", "taken as public", "private_"):
        assert words in text
    shared = state_guarantee(Ledger.planned(PLAN, 4, ["shared_seed"]), PLAN)
    assert shared.startswith("This run shares its seed")


def test_a_plan_without_noise_among_others_promises_nothing():
    quiet = dataclasses.replace(PLAN, noise_multiplier=0.0)
    ledger = Ledger.planned(OTHER).joined(
        Ledger((Entry(run="b", plan=quiet, updates=1),))
    )
    assert "NOT differentially private" in state_guarantee(ledger, OTHER)
