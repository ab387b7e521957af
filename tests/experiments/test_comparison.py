import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import comparison
from dpmix_tf.experiments.comparison import ARMS, Run
from dpmix_tf.views import ViewMaker
from tests.conftest import ROOT


def test_arms_make_the_published_numbers_of_views():
    counts = {
        arm: ViewMaker(
            **{**settings, "synthetic": 0, "mixed": settings["mixed"]}
        ).views_per_example
        + settings["synthetic"]
        for arm, settings in ARMS.items()
    }
    assert counts == {
        "dp_sgd": 1,
        "self_aug_16": 16,
        "self_aug_34": 34,
        "dp_mix_self": 34,
        "dp_mix_diff": 36,
        **dict.fromkeys(["cutmix", "resizemix", "fmix", "maskmix"], 34),
    }


def test_the_grid_is_balanced_when_cut_short():
    runs = comparison.grid(["dp_sgd", "dp_mix_self"], [1.0, 8.0], 3)
    assert len(runs) == 12 and len(set(runs)) == 12
    assert {run.seed for run in runs[:4]} == {1}
    for bad in ((["sgd"], [1.0], 1), ([], [1.0], 1), (["dp_sgd"], [], 1)):
        with pytest.raises(DPMixError, match="arms must be"):
            comparison.grid(*bad)


def test_the_table_shows_means_and_standard_errors():
    finals = {
        Run("dp_sgd", 1.0, 1): {"test_accuracy": 0.5},
        Run("dp_sgd", 1.0, 2): {"test_accuracy": 0.6},
        Run("dp_mix_self", 1.0, 1): {"test_accuracy": 0.9},
    }
    lines = comparison.table(finals, "test_accuracy").splitlines()
    assert lines[2] == "| dp_sgd | 55.00 (5.00) |"
    assert lines[3] == "| dp_mix_self | 90.00 |"


@pytest.mark.slow
def test_arms_are_trained_tabulated_and_not_repeated(tmp_path):
    options = [
        f"--config={ROOT}/configs/digits.py",
        "--config.privacy.updates=2",
        "--config.privacy.expected_batch_size=8",
        "--config.privacy.accountant=rdp",
    ]
    runs = comparison.grid(["dp_sgd", "self_aug_16"], [8.0], 1)
    finals = comparison.train_all(runs, tmp_path, options, jobs=2)
    assert set(finals) == set(runs)
    assert all(final["updates"] == 2 for final in finals.values())
    assert comparison.train_all(runs, tmp_path, options, jobs=1) == finals
    with pytest.raises(DPMixError, match="holds runs made with"):
        comparison.train_all(runs, tmp_path, ["--config=nowhere.py"], jobs=1)
    with pytest.raises(DPMixError, match="failed"):
        comparison.train_all(runs, tmp_path / "x", ["--config=nowhere.py"], jobs=1)
