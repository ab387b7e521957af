"""States a ledger's guarantee, its assumptions and its limits in plain words."""

import math
from importlib import metadata

from dpmix_tf.privacy import accounting
from dpmix_tf.privacy import ledger as conditions
from dpmix_tf.privacy.ledger import CHOSEN, SHARED, SYSTEM, Entry, Ledger
from dpmix_tf.privacy.plan import EXAMPLE, PERSON, PrivacyPlan, round_up

_ADJACENCY = {
    EXAMPLE: "adding or removing one example (one image with its label)",
    PERSON: "adding or removing one person with all their images and labels",
}
PLURAL = {EXAMPLE: "examples", PERSON: "people"}
_MORE_THAN_ONE = {
    EXAMPLE: "people who appear in more than one example",
    PERSON: "people who appear under more than one name, or in other people's images",
}
# What a statement has to say first, by the seed's origin.
SEED_WARNINGS = {
    SYSTEM: None,
    CHOSEN: (
        "No guarantee while the seed is known: it was chosen by the user, and whoever "
        "knows or guesses it can subtract the noise. Leave the seed out (config.seed, "
        "seed=), so that the operating system draws a secret one. The rest of this "
        "statement would hold for a random, secret seed used for this run alone."
    ),
    SHARED: (
        "This run shares its seed with other runs of an experiment: publish at most "
        "one of them; any two together have no guarantee."
    ),
}


def adjacency(plan: PrivacyPlan) -> str:
    """Returns in words which data sets the guarantee makes hard to tell apart."""
    return f"data sets that differ by {_ADJACENCY[plan.record]}"


def not_covered(plan: PrivacyPlan, group_size: int = 1) -> tuple[str, ...]:
    """Returns in words what the guarantee says nothing about; see state_guarantee."""
    several = _MORE_THAN_ONE[plan.record]
    if group_size > 1:
        several = several.replace("one example", f"{group_size} examples")
    chosen = "hyperparameters chosen by looking at the same data"
    if plan.choice:
        chosen += ", other than by the choice among trials"
    return (
        chosen,
        "numbers computed without noise, such as training loss or validation accuracy",
        f"the number of {PLURAL[plan.record]} and the number and names of classes, "
        "which are taken as public",
        "other releases made from the same data",
        several,
        "floating-point effects of the noise generator",
    )


def state_guarantee(ledger: Ledger, plan: PrivacyPlan, group_size: int = 1) -> str:
    """States the guarantee of a network's weights.

    Args:
      ledger: everything that the network was trained under.
      plan: the current training run's plan. Its delta and accountant are used, and all
        its planned updates count towards the cost of choosing among updates.
      group_size: above 1, says too what holds for people with at most so many
        examples (or for so many people, if they are the records), by the PLD
        accountant whatever the plan's.

    Raises:
      DPMixError: group_size is not a whole number, 1 or more.
    """
    accounting.check_group_size(group_size)
    epsilon = ledger.epsilon(plan.delta, plan.accountant)
    trained = ledger.without_counts()
    spent = {plan: updates for plan, updates in trained.by_plan().items() if updates}
    if any(one.noise_multiplier == 0 for one in spent or {plan: 0}):
        return (
            "This training run is NOT differentially private: it adds no noise "
            "(noise_multiplier = 0). Use it for comparison only."
        )
    if math.isinf(epsilon):
        return (
            "This training run has NO stated guarantee: the "
            f"{plan.accountant.upper()} accountant gives no finite epsilon at "
            f"delta = {plan.delta:g}. Use a larger delta, more noise or the other "
            "accountant."
        )
    paragraphs = [
        _guarantee(epsilon, sum(spent.values()), plan),
        _assumptions(spent or {plan: 0}, ledger),
    ]
    if group_size > 1:
        paragraphs.append(_for_groups(ledger, plan, group_size))
    paragraphs.append(f"It does not cover: {'; '.join(not_covered(plan, group_size))}.")
    whole = _cost_of_choosing(ledger, plan)
    if whole:
        paragraphs.insert(2, whole)
    warning = SEED_WARNINGS[seed_origin(ledger)]
    return "\n".join([warning, *paragraphs] if warning else paragraphs)


def seed_origin(ledger: Ledger) -> str:
    """Returns the worst origin among the seeds that trained a network."""
    if conditions.CHOSEN_SEED in ledger.conditions:
        return CHOSEN
    return SHARED if conditions.SHARED_SEED in ledger.conditions else SYSTEM


def _guarantee(epsilon: float, updates: int, plan: PrivacyPlan) -> str:
    shown = round_up(epsilon)
    return (
        f"Guarantee: publishing the weights after {updates:,} updates is "
        f"({shown}, {plan.delta:g})-differentially private: epsilon = {shown}, "
        f"delta = {plan.delta:g}. Adjacency: {adjacency(plan)}. "
        f"Computed with dp-accounting {metadata.version('dp-accounting')}, "
        f"{plan.accountant.upper()} accountant."
    )


def _for_groups(ledger: Ledger, plan: PrivacyPlan, group_size: int) -> str:
    """What holds for people with several examples."""
    epsilon = ledger.epsilon(plan.delta, "pld", group_size)
    whose, what = f"For anybody with at most {group_size} examples", "that person's"
    if plan.record == PERSON:
        whose, what = f"For any {group_size} people together", "these people's"
    if math.isinf(epsilon):
        return f"{whose}: no finite epsilon at delta = {plan.delta:g}."
    shown = round_up(epsilon)
    return (
        f"{whose}: ({shown}, {plan.delta:g})-differentially private, that is epsilon "
        f"= {shown}, delta = {plan.delta:g}, under adding or removing all of {what} "
        "examples together (PLD accountant)."
    )


def _assumptions(spent: dict[PrivacyPlan, int], ledger: Ledger) -> str:
    noted = ledger.conditions
    if len(spent) == 1:
        (plan,) = spent
        parts = f"It assumes: {_mechanism(plan)}"
    else:
        listed = "; ".join(
            f"({number}) in {updates:,} updates, {_mechanism(plan)}"
            for number, (plan, updates) in enumerate(spent.items(), start=1)
        )
        parts = (
            f"The network was trained under {len(spent)} plans, and epsilon covers "
            f"them together. It assumes: {listed}"
        )
    sentences = [f"{parts}; and the seed of sampling and noise stays secret."]
    sentences.append(
        "The batches were supplied by the user, who states that they were drawn by "
        "Poisson sampling; dpmix_tf did not draw them and cannot vouch for this."
        if conditions.UNCHECKED_SAMPLING in noted
        else "The batches were drawn by dpmix_tf's own Poisson sampler."
    )
    sentences += [choice_in_words(plan) for plan in spent if plan.choice]
    sentences += [text for name, text in _SENTENCES.items() if name in noted]
    sentences += [
        f"Epsilon also covers a release of how many {PLURAL[entry.plan.record]} have "
        "each label, with Gaussian noise of standard deviation "
        f"{entry.plan.noise_multiplier:g}."
        for entry in ledger.entries
        if conditions.CLASS_COUNTS in entry.conditions
    ]
    return " ".join(sentences)


def _mechanism(plan: PrivacyPlan) -> str:
    once = "clipped once to" if plan.clipping == "fixed" else "scaled once to at most"
    whose = "its" if plan.record == EXAMPLE else "their"
    clipped = (
        f"each {plan.record}'s gradient, the mean over {whose} views, was {once} L2 "
        f"norm {plan.clip_norm:g}"
        if plan.sensitivity == 1
        else "the gradient of each microbatch, in which different examples are "
        f"blended, was {once} L2 norm {plan.clip_norm:g}, so that one "
        f"example moves the sum by up to {plan.sensitivity:g} times that"
    )
    return (
        f"each of {plan.num_examples:,} {PLURAL[plan.record]} joined each update's "
        "batch "
        f"independently with probability {plan.sampling_probability:.6g}; {clipped}; "
        "Gaussian noise of standard deviation "
        f"{plan.noise_multiplier * plan.sensitivity:.6g} times that norm was added "
        "once to each update's sum"
    )


def choice_in_words(plan: PrivacyPlan) -> str:
    """States how one of several trainings was chosen, and what that assumes."""
    people = PLURAL[plan.record]
    distribution = plan.trials_distribution.replace("poisson", "Poisson")
    if plan.score_noise is None:
        scored = f"validation {people}, which are taken as public"
    else:
        scored = (
            f"validation {people}, who are other {people}, with Gaussian noise of "
            f"standard deviation {plan.score_noise:.6g} on the sum of scores in [0, 1];"
            " the guarantee holds for these too"
        )
        scored = scored.replace("examples, who are", "examples, which are")
    return (
        "Epsilon covers the choice of this training among others under the same "
        f"plan, whose number was drawn from a {distribution} distribution "
        f"with mean {plan.trials:g}: by scores on {scored}. That number, and all that "
        "is known about the other trainings, must stay secret."
    )


_SENTENCES = {
    conditions.CLASS_WEIGHTS: "Gradients are multiplied by weights of their classes, "
    "which are taken as public: they must not have been chosen by counting the private "
    "records, but with noise that the ledger covers.",
    conditions.PUBLIC_POOL: "The pool of synthetic images is taken as public: it must "
    "not have been made from, or chosen by looking at, the private examples.",
    conditions.PUBLIC_WEIGHTS: "The pretrained weights that training started from are "
    "taken as public: none of the private examples may have been used to train them.",
    conditions.WARM_START: "Private training starts from weights trained on a pool of "
    "images, which is taken as public: it must not have been made from, or chosen by "
    "looking at, the private examples.",
    conditions.PRIVATE_METRICS: "Numbers computed from the training examples without "
    "noise (private_...) were shown during training; neither they nor decisions based "
    "on them are covered.",
}


def _cost_of_choosing(ledger: Ledger, plan: PrivacyPlan) -> str | None:
    """The cost of publishing these weights because they beat other updates' weights."""
    made = ledger.without_counts().updates(plan)
    if not 0 < made < plan.updates:
        return None
    whole = _when_finished(ledger, plan)
    return (
        f"These are the weights after {made:,} of {plan.updates:,} planned updates. "
        "Choosing them among the weights of several updates, for instance by "
        "validation accuracy, looks at all of those weights: over the whole run that "
        f"costs epsilon = {round_up(whole)}."
    )


def history_warning(ledger: Ledger, plan: PrivacyPlan) -> str | None:
    """The warning before `plan` starts on a network that other plans have trained."""
    before = ledger.without_counts().by_plan()
    if not any(updates for known, updates in before.items() if known != plan):
        return None
    spent = ledger.epsilon(plan.delta, plan.accountant)
    total = _when_finished(ledger, plan)
    return (
        f"The network was trained privately before: epsilon = {round_up(spent)} is "
        f"already spent. After all updates of this plan it will be {round_up(total)}, "
        f"at delta = {plan.delta:g}."
    )


def _when_finished(ledger: Ledger, plan: PrivacyPlan) -> float:
    """Epsilon once all the plan's updates are made."""
    left = max(0, plan.updates - ledger.without_counts().updates(plan))
    rest = Ledger((Entry(run="the rest", plan=plan, updates=left),))
    return ledger.joined(rest).epsilon(plan.delta, plan.accountant)
