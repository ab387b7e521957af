import dataclasses
import importlib

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import ARMS, Run, Study
from dpmix_tf.experiments.study import exact
from dpmix_tf.training.config import default_config
from tests.conftest import ROOT
from tests.experiments import tiny

SHIPPED = sorted(p.stem for p in (ROOT / "configs" / "experiments").glob("*.py"))


def test_runs_are_paired_by_seed_and_tuned_by_arm_and_epsilon():
    study = Study(tiny.get_config())
    assert list(study.groups()) == [("plain", 8.0), ("mixed", 8.0)]
    trials = study.tuning_runs("plain", 8.0)
    assert [run.trial for run in trials] == [
        (("optimizer.learning_rate", 0.5),),
        (("optimizer.learning_rate", 1.0),),
    ]
    tests = study.test_runs("mixed", 8.0, trials[1].trial)
    assert [run.seed for run in tests] == [1, 2]
    assert not {run.seed for run in tests} & {run.seed for run in trials}
    assert len({run.name for run in (*trials, *tests)}) == 4
    # A choice that changes, for a trial had failed, begins test runs of its own.
    others = study.test_runs("mixed", 8.0, trials[0].trial)
    assert not {run.name for run in tests} & {run.name for run in others}
    config = study.config_of(tests[0])
    assert (config.seed, config.privacy.epsilon) == (None, 8.0)  # a secret one
    public = Study(tiny.get_config(), public_seeds=True).config_of(tests[0])
    assert public.seed == 1
    assert (config.views.base, config.views.mixed) == (2, 1)
    assert config.optimizer.learning_rate == 1.0


def test_arms_make_the_published_numbers_of_views():
    from configs import digits
    from dpmix_tf.experiments import arms, default_experiment

    study = Study(default_experiment(digits.get_config(), arms(*ARMS)))
    assert {arm: study.views_per_example(arm) for arm in ARMS} == {
        "dp_sgd": 1,
        "self_aug_16": 16,
        "self_aug_34": 34,
        "dp_mix_self": 34,
        "dp_mix_diff": 36,
        **dict.fromkeys(["labels_only", "cutmix", "resizemix", "fmix", "maskmix"], 34),
        **{f"naive_mixup_{size}": 1 for size in (2, 4, 8)},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilons": ()}, "needs some of the arms plain, mixed"),
        ({"seeds": 0}, "needs some of the arms"),
        ({"baseline": "nobody"}, "baseline must be among plain, mixed"),
        ({"order": ("plain",)}, "order must name"),
        ({"equal_compute": ("plain", "mixd")}, "equal_compute must be among"),
        ({"ablations": (("views.bass", ("plain",)),)}, "views.bass = None"),
        ({"ablations": (("views.mixer", ("plain",)),)}, "expected a number"),
        ({"tune": {"optimizer": {"learning_rate": 1.0}}}, "must be a tuple"),
        ({"tune": {"optimizer": {"learning_rate": ()}}}, "must be a tuple"),
        ({"base": {"data": {"validation_fraction": 0.0}}}, "needs validation"),
        ({"equal_compute": ("plain", "mixed")}, "'plain': 2, 'mixed': 3"),
        ({"base": {"report": {"noise": 2.0}}}, "without noise. Leave out report.noise"),
    ],
)
def test_experiments_that_show_nothing_are_refused(change, words):
    config = tiny.get_config()
    config.update(change)
    with pytest.raises(DPMixError, match=words):
        Study(config)
    with pytest.raises(DPMixError, match="received: arms=\\['other'\\]"):
        Study(tiny.get_config(), arms=("other",))
    assert Study(tiny.get_config(), arms=["plain", "plain"]).arms == ("plain",)


def test_a_folder_takes_more_seeds_and_refuses_another_experiment(tmp_path):
    config = tiny.get_config()
    Study(config).claim(tmp_path)
    config.seeds, config.title = 7, "Grown"
    config.base.data.data_dir, config.base.run.checkpoint_every = "elsewhere", 3
    Study(config).claim(tmp_path)
    config.base.privacy.updates = 13
    with pytest.raises(DPMixError, match="base.privacy.updates: 12 there, 13 here"):
        Study(config).claim(tmp_path)


def test_budgets_are_named_as_asked_for():
    """Six digits would show 0.1 for more, and put both into one folder."""
    run = Run("plain", 0.1000000001, 1, (), False)
    assert run.name == "runs/plain/eps0.1000000001/seed1"
    assert [exact(e) for e in (8, 0.5, 1e-7, 12.0)] == ["8", "0.5", "1e-07", "12"]


def test_a_misspelt_field_is_the_arms_error():
    study = Study(tiny.get_config("broken"))
    with pytest.raises(DPMixError, match="'misspelt' sets views.bass = 1"):
        study.config_of(Run("misspelt", 8.0, 1, (), False))


def test_validation_examples_are_trained_on_only_after_the_choice():
    config = tiny.get_config()
    held_out = config.base.data.validation_fraction
    assert held_out > 0
    for refit, expected in ((False, held_out), (True, 0.0)):
        config.refit = refit
        study = Study(config)
        trial = study.config_of(study.tuning_runs("plain", 8.0)[0])
        test = study.config_of(study.test_runs("plain", 8.0, ())[0])
        assert trial.data.validation_fraction == held_out
        assert not trial.run.test
        assert test.data.validation_fraction == expected
        assert test.run.test


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_describe_runs(name):
    module = importlib.import_module(f"configs.experiments.{name}")
    assert f"--config=configs/experiments/{name}.py" in module.__doc__
    study = Study(module.get_config())
    for arm, epsilon in study.groups():
        run = study.test_runs(arm, epsilon, study.trials[-1])[0]
        config = study.config_of(run)
        assert config.keys() == default_config().keys()
        assert study.views_per_example(arm) >= 1
    assert {arm for arm, *_ in study.config.published} <= set(study.arms)
    for field, arms in study.config.ablations:
        assert set(arms) <= set(study.arms) and field.startswith("views.")


def test_the_shards_of_an_experiment_are_all_of_it(tmp_path):
    from configs.experiments import digits_arms
    from dpmix_tf.experiments import Runner

    study = Study(digits_arms.get_config())
    shards = [Runner(study, tmp_path, shard=(i, 3)).groups for i in (1, 2, 3)]
    assert sorted(sum(shards, [])) == sorted(study.groups())
    with pytest.raises(DPMixError, match="i/n"):
        Runner(study, tmp_path, shard=(4, 3))
    assert dataclasses.is_dataclass(Run)
