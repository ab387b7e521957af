"""bin/tune.py, from a config to a card whose epsilon covers the choice."""

import json

import pytest

from tests.cli.test_commands import run

SMALL = (
    "--config=configs/digits.py",
    "--config.data.train_examples=300",
    "--config.privacy.updates=3",
    "--config.privacy.expected_batch_size=20",
    "--config.views.base=1",
    "--config.views.mixed=0",
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned run, and what the command said. Its number of trials is 1 or more."""
    workdir = tmp_path_factory.mktemp("tune") / "tuned"
    done = run(
        *("tune", *SMALL, f"--workdir={workdir}", "--distribution=geometric"),
        *("--trials=1.5", "--try=optimizer.learning_rate=0.5,2"),
        "--try=privacy.clipping=fixed,automatic",
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_it_says_what_was_chosen_and_what_it_cost(tuned):
    workdir, said = tuned
    assert "chosen             optimizer.learning_rate = " in said
    assert "privacy.clipping = " in said and "validation score" in said
    assert "epsilon            8.000, with the choice" in said
    assert "drawn from a geometric distribution with mean 1.5" in said
    settings = json.loads((workdir / "best" / "config.json").read_text())
    assert settings["optimizer"]["learning_rate"] in (0.5, 2)
    assert settings["privacy"]["clipping"] in ("fixed", "automatic")


def test_the_same_command_repeats_nothing(tuned):
    workdir, said = tuned
    again = run(
        *("tune", *SMALL, f"--workdir={workdir}", "--distribution=geometric"),
        *("--trials=1.5", "--try=optimizer.learning_rate=0.5,2"),
        "--try=privacy.clipping=fixed,automatic",
    )
    assert again.stdout == said


def test_the_chosen_run_is_evaluated_exported_and_its_card_verified(tuned, tmp_path):
    best, model = tuned[0] / "best", tmp_path / "model"
    assert "accuracy" in run("evaluate", f"--workdir={best}").stdout
    done = run("export", f"--workdir={best}", f"--output={model}")
    assert done.returncode == 0, done.stderr
    assert "with mean 1.5" in run("privacy", f"--card={model}").stdout
    checked = run("privacy", f"--verify={model}")
    assert checked.returncode == 0 and "checks agree" in checked.stdout
    explained = run("privacy", f"--card={model}", "--explain")
    assert "epsilon = 8.000" in explained.stdout
    # Who takes the choice out of the card is found out.
    path = model / "1" / "assets.extra" / "privacy_card.json"
    card = json.loads(path.read_text())
    for entry in card["privacy"]["ledger"]:
        entry["plan"] |= {"trials": 1.0, "score_noise": None}
    path.write_text(json.dumps(card))
    assert run("privacy", f"--verify={model}").returncode == 1


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--try=optimizer.learning_rate",), "--try must be FIELD=VALUE,VALUE"),
        ((), "two values of a setting or more"),
        (("--try=optimizer.learning_rate=1,2", "--config.seed=3"), "config.seed"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, flags, message):
    done = run("tune", *SMALL, f"--workdir={tmp_path / 'w'}", *flags)
    assert done.returncode == 2 and message in done.stderr


def test_train_leaves_trials_to_tune(tmp_path):
    done = run(
        *("train", *SMALL, f"--workdir={tmp_path}", "--config.privacy.trials=3"),
        "--config.privacy.accountant=rdp",
    )
    assert done.returncode == 2 and "bin/tune.py" in done.stderr


def test_the_cost_of_a_choice_can_be_asked_for():
    flags = ("--num_examples=1000", "--delta=1e-5", "--updates=50", "--batch_size=100")
    done = run("privacy", *flags, "--epsilon=3", "--trials=6", "--format=json")
    answer = json.loads(done.stdout)
    assert answer["trials"] == 6 and answer["accountant"] == "rdp"
    alone = json.loads(run("privacy", *flags, "--epsilon=3", "--format=json").stdout)
    assert answer["noise_multiplier"] > 1.3 * alone["noise_multiplier"]
    refused = run("privacy", *flags, "--epsilon=3", "--trials=6", "--accountant=pld")
    assert refused.returncode == 2 and "Renyi" in refused.stderr
