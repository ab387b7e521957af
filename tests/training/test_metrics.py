import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from dpmix_tf.errors import DPMixError
from dpmix_tf.training import metrics

RANDOM = np.random.default_rng(3)


def delong_by_pairs(scores, labels):
    """AUROC and its variance from all pairs: DeLong et al. 1988, equations 1 to 6."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = positive[:, None] > negative[None, :]
    ties = positive[:, None] == negative[None, :]
    kernel = wins + 0.5 * ties
    v10, v01 = kernel.mean(axis=1), kernel.mean(axis=0)
    variance = np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01)
    return kernel.mean(), variance


def standard_error(found):
    """The one that the interval was made with."""
    width = special.logit(found.high) - special.logit(found.low)
    return width / 2 / stats.norm.ppf(0.975) * found.value * (1 - found.value)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(4, 40), elements=st.integers(-3, 3)),
    st.integers(0, 2**20),
)
def test_auroc_and_its_variance_are_those_of_all_pairs(scores, seed):
    labels = np.random.default_rng(seed).integers(0, 2, len(scores)).astype(float)
    found = metrics.auroc(scores, labels)
    if labels.min() == labels.max():
        assert found is None
        return
    expected = sklearn_metrics.roc_auc_score(labels, scores)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert (found.positives, found.negatives) == (labels.sum(), (1 - labels).sum())
    if min(found[3:]) == 1:
        return
    value, variance = delong_by_pairs(scores, labels)
    assert found.value == pytest.approx(value, abs=1e-12)
    if 0 < value < 1 and variance > 1e-6:
        assert standard_error(found) ** 2 == pytest.approx(variance, rel=1e-6)


def test_the_interval_is_about_the_bootstraps():
    labels = RANDOM.integers(0, 2, 400).astype(float)
    scores = RANDOM.normal(size=400) + labels
    values = []
    for _ in range(1500):
        rows = RANDOM.integers(400, size=400)
        values.append(metrics.auroc(scores[rows], labels[rows]).value)
    error = standard_error(metrics.auroc(scores, labels))
    assert error == pytest.approx(np.std(values), rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    truth, covered = stats.norm.cdf(1 / math.sqrt(2)), []
    labels = np.repeat([0.0, 1.0], [60, 20])
    for _ in range(600):
        found = metrics.auroc(RANDOM.normal(size=80) + labels, labels)
        covered.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_unknown_labels_are_left_out():
    scores, labels = RANDOM.normal(size=50), RANDOM.integers(0, 2, 50).astype(float)
    labels[::3] = np.nan
    known = ~np.isnan(labels)
    assert metrics.auroc(scores, labels) == metrics.auroc(scores[known], labels[known])
    assert metrics.average_precision(scores, labels) == pytest.approx(
        sklearn_metrics.average_precision_score(labels[known], scores[known])
    )


def test_what_the_data_cannot_give_is_none():
    assert metrics.auroc([1, 2], [1, 1]) is metrics.auroc([1, 2], [0, 0]) is None
    assert metrics.auroc([1, 2], [np.nan, np.nan]) is None
    assert metrics.average_precision([1, 2], [0, np.nan]) is None


def test_intervals_of_few_examples_stay_wide():
    assert metrics.auroc([3, 1, 2], [1, 0, 0])[:3] == (1, 0, 1)
    perfect = metrics.auroc(np.arange(20), np.arange(20) >= 12)
    assert perfect.value == perfect.high == 1 and 0.6 < perfect.low < 0.7  # of 8
    reversed_ = metrics.auroc(-np.arange(20), np.arange(20) >= 12)
    assert reversed_.high == pytest.approx(1 - perfect.low)
    assert metrics.auroc([1, 1, 1, 1], [0, 1, 0, 1]).value == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([], [], "at least one example"),
        ([1, 2], [1], "same shape"),
        ([np.nan, 2], [1, 0], "finite"),
        ([1, 2], [1, 2], "0, 1 or NaN"),
    ],
)
def test_scores_and_labels_that_make_no_sense_are_refused(scores, labels, words):
    for figure in (metrics.auroc, metrics.average_precision):
        with pytest.raises(DPMixError, match=words):
            figure(scores, labels)


def multi_label(n=120, labels=3):
    known = RANDOM.integers(0, 2, (n, labels)).astype(float)
    logits = RANDOM.normal(size=(n, labels)) + known - 0.5
    known[RANDOM.random((n, labels)) < 0.2] = np.nan
    return logits, known


def test_a_summary_of_several_labels_agrees_with_scikit_learn():
    logits, labels = multi_label()
    labels[:, 2] = 0  # nobody has it
    found = metrics.summary_multi_label(logits, labels, ["a", "b", "c"])
    expected = []
    for column, name in enumerate("ab"):
        known = ~np.isnan(labels[:, column])
        truth, scores = labels[known, column], logits[known, column]
        expected.append(sklearn_metrics.roc_auc_score(truth, scores))
        one = found["by_label"][name]
        assert one["auroc"]["value"] == pytest.approx(expected[-1])
        assert one["prevalence"] == truth.mean()
        assert one["accuracy"] == np.mean((scores > 0) == truth)
    assert found["by_label"]["c"]["auroc"] is None
    assert found["by_label"]["c"]["average_precision"] is None
    mean = found["mean_auroc"]
    assert mean["value"] == pytest.approx(np.mean(expected)) and mean["labels"] == 2
    assert mean["low"] < mean["value"] < mean["high"]
    assert found["examples"] == 120
    assert json.loads(json.dumps(found)) == found
    assert metrics.summary_multi_label(logits, labels, ["a", "b", "c"]) == found


def test_the_bootstrap_of_one_label_is_about_delongs_interval():
    logits, labels = multi_label(500, 1)
    logits = np.round(logits, 1)  # ties
    found = metrics.summary_multi_label(logits, labels, ["a"])
    mean, one = found["mean_auroc"], found["by_label"]["a"]["auroc"]
    assert mean["low"] == pytest.approx(one["low"], abs=0.01)
    assert mean["high"] == pytest.approx(one["high"], abs=0.01)


def test_copies_of_a_persons_images_do_not_narrow_the_interval():
    logits, labels = multi_label(80)
    names, people = ["a", "b", "c"], np.arange(80)

    def width(times, **more):
        found = metrics.summary_multi_label(
            np.repeat(logits, times, 0), np.repeat(labels, times, 0), names, **more
        )["mean_auroc"]
        return found["high"] - found["low"]

    assert width(9, people=np.repeat(people, 9)) == pytest.approx(width(1))
    assert width(9) < 0.5 * width(1)


def test_labels_of_which_nothing_is_known_have_no_figures():
    found = metrics.summary_multi_label(np.zeros((3, 1)), np.full((3, 1), np.nan), "a")
    assert found["mean_auroc"] is None
    assert set(found["by_label"]["a"].values()) == {None}


def test_a_summary_of_one_label_agrees_with_scikit_learn():
    labels = RANDOM.integers(0, 3, 200)
    logits = RANDOM.normal(size=(200, 4)) + 2 * np.eye(4)[labels]
    found = metrics.summary_single_label(logits, labels, list("abcd"))
    predicted = logits.argmax(axis=1)
    accuracy = np.mean(predicted == labels)
    assert found["accuracy"]["value"] == accuracy
    assert found["by_class"]["d"] == {"examples": 0, "accuracy": None}
    recalls = sklearn_metrics.recall_score(
        labels, predicted, labels=[0, 1, 2], average=None
    )
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    # Wilson 1927: the proportions whose own standard error reaches the one observed.
    for end in ("low", "high"):
        p = found["accuracy"][end]
        away = abs(p - accuracy) / math.sqrt(p * (1 - p) / 200)
        assert away == pytest.approx(stats.norm.ppf(0.975))
    assert json.loads(json.dumps(found)) == found


def test_the_calibration_error_is_that_of_bins_of_equal_mass():
    logits, labels = RANDOM.normal(size=(150, 3)), RANDOM.integers(0, 3, 150)
    found = metrics.summary_single_label(logits, labels, list("abc"))
    confidence = special.softmax(logits, axis=1).max(axis=1)
    order, correct = np.argsort(confidence), logits.argmax(axis=1) == labels
    gaps = [
        abs(confidence[rows].mean() - correct[rows].mean())
        for rows in np.split(order, 15)
    ]
    assert found["calibration_error"] == pytest.approx(np.mean(gaps))


def test_confidence_that_is_right_on_average_is_calibrated_in_any_order():
    labels = np.repeat([0, 1], [75, 25])
    logits = np.tile([math.log(3), 0.0], (100, 1))  # 75 % sure of the first
    for order in (np.arange(100), RANDOM.permutation(100)):
        found = metrics.summary_single_label(logits, labels[order], "ab")
        assert found["calibration_error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("multi", [False, True])
def test_a_subgroups_figures_are_its_own(multi):
    if multi:
        logits, labels = multi_label(60)
    else:
        logits, labels = RANDOM.normal(size=(60, 3)), RANDOM.integers(0, 3, 60)
    groups = np.repeat(["men", "women", "x", "y"], [25, 23, 8, 4])
    found = metrics.by_subgroup(logits, labels, groups, list("abc"), multi)
    assert {k: v["size"] for k, v in found["groups"].items()} == {
        "men": 25,
        "women": 23,
        "other": 12,
    }
    assert found["smallest_group"] == {"name": "other", "size": 12}
    summary = metrics.summary_multi_label if multi else metrics.summary_single_label
    women = summary(logits[25:48], labels[25:48], list("abc"))
    for name, figure in found["groups"]["women"].items():
        assert name == "size" or figure == women[name]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": 30, "b": 15, "c": 3}, {"a": 30, "other": 18}),  # 3 alone are too few
        ({"a": 30, "b": 15}, {"a": 30, "b": 15}),
        ({"a": 30, "other": 12, "c": 3}, {"a": 30, "other": 15}),
        ({"a": 4}, {"other": 4}),
        ({"a": 6, "b": 6}, {"other": 12}),
    ],
)
def test_small_groups_are_pooled_until_nobody_is_singled_out(sizes, expected):
    groups = np.repeat(list(sizes), list(sizes.values()))
    logits = RANDOM.normal(size=(len(groups), 2))
    labels = np.zeros(len(groups), np.int64)
    found = metrics.by_subgroup(logits, labels, groups, "ab", False)["groups"]
    assert {name: one["size"] for name, one in found.items()} == expected


def test_a_group_of_one_person_is_small_however_many_images_there_are():
    groups = np.repeat(["many", "one"], [40, 40])
    people = [*range(40), *[99] * 40]
    found = metrics.by_subgroup(
        np.zeros((80, 2)), np.zeros(80, int), groups, "ab", False, people=people
    )
    assert found["smallest_group"] == {"name": "other", "size": 41}


def test_a_persons_images_are_joined():
    logits = np.array([[1.0, 0, 0], [3, 0, 2], [0, 5, 0], [0, 0, 7], [1, 1, 1]])
    people = ["b", "b", "a", "b", "a"]
    means, labels, names = metrics.per_person(logits, [2, 1, 0, 2, 1], people)
    assert list(names) == ["a", "b"]
    np.testing.assert_allclose(means, [[0.5, 3, 0.5], [4 / 3, 0, 3]])
    assert list(labels) == [0, 2]  # 0 and 1 are equally common for a
    nan = np.nan
    known = [[0, 1, nan], [nan, 0, nan], [0, nan, nan], [0, 0, nan], [nan, nan, 1]]
    _, findings, _ = metrics.per_person(logits, np.array(known), people)
    np.testing.assert_array_equal(findings, [[0, nan, 1], [0, 1, nan]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.summary_single_label(np.zeros((0, 2)), [], "ab"), "examples"),
        (lambda: metrics.summary_multi_label([], [], []), "at least one"),
        (lambda: metrics.per_person(np.zeros((0, 2)), [], []), "at least one"),
        (lambda: metrics.by_subgroup([], [], [], [], True), "at least one"),
        (lambda: metrics.summary_single_label([[0, 1]], [2], "ab"), "in \\[0, 2\\)"),
        (lambda: metrics.summary_single_label([[0, 1]], [0.0], "ab"), "integers"),
        (lambda: metrics.summary_single_label([[0, 1]], [0], "aa"), "different"),
        (lambda: metrics.summary_single_label([[0, np.inf]], [0], "ab"), "finite"),
        (lambda: metrics.summary_multi_label([[0, 1]], [0, 1], "ab"), "shape"),
        (lambda: metrics.per_person([[0, 1]], [0], ["a", "b"]), "people must have"),
        (lambda: metrics.per_person([[0, 1]], [[0, 1, 1]], ["a"]), "shape"),
        (lambda: metrics.by_subgroup([[0, 1]], [0], [], "ab", False), "groups must"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, words):
    with pytest.raises(DPMixError, match=words):
        call()
