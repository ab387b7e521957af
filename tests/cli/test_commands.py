"""Every command, run as a user runs it: in a process of its own."""

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dpmix_tf
from dpmix_tf.cli.common import _quiet_without_readers
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.attacks import trade_off
from dpmix_tf.privacy.plan import round_up
from tests.conftest import ROOT
from tests.serving.cards import card_of, plan_of

DIGITS = ("--config=configs/digits.py",)
COMMANDS = sorted(path.stem for path in (ROOT / "bin").glob("*.py"))


def run(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A short run, trained by the command, in a folder that a shell would split."""
    home = tmp_path_factory.mktemp("cli")
    folder = home / "my run's" / "first"
    (home / "digits.py").write_text((ROOT / "configs" / "digits.py").read_text())
    done = run(
        "train",
        "--config=~/digits.py",
        "--workdir=~/my run's/first",
        "--config.privacy.updates=3",
        "--config.privacy.expected_batch_size=10",
        "--config.privacy.accountant=rdp",
        "--config.views.base=2",
        "--config.views.mixed=1",
        HOME=str(home),
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    (folder / "errors.txt").write_text(done.stderr)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_the_command_does_and_takes(name):
    said = run(name, "--help").stdout
    assert f"python bin/{name}.py" in said
    assert "--config:" in said or "--workdir:" in said or "--epsilon:" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--help"),
        (
            "privacy",
            *("--num_examples=100", "--batch_size=10", "--updates=5"),
            *("--delta=1e-5", "--noise_multiplier=2", "--accountant=rdp"),
        ),
    ],
    ids=" ".join,
)
def test_a_command_ends_quietly_when_nobody_reads_on(command):
    name, *arguments = command
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / f"{name}.py", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(writing)
    assert done.stderr == "" and done.returncode == 128 + signal.SIGPIPE


def test_a_connection_that_breaks_is_no_reader_that_left():
    with pytest.raises(BrokenPipeError, match="a connection"), _quiet_without_readers():
        raise BrokenPipeError("a connection")


@pytest.mark.slow
def test_train_says_what_was_spent_and_what_comes_next(workdir):
    said = (workdir / "said.txt").read_text()
    spent = json.loads((workdir / "privacy.json").read_text())
    for words in (
        spent["statement"],
        "epsilon            8.000",
        "delta              0.0001",
        "test accuracy  ",
        "test accuracy, EMA",
        f"Written to {workdir}",
        "bin/predict.py",
    ):
        assert words in said


@pytest.mark.slow
def test_what_train_suggests_can_be_pasted_into_a_shell(workdir):
    said = (workdir / "said.txt").read_text()
    commands = [shlex.split(x) for x in said.splitlines() if x.startswith("  python")]
    assert len(commands) == 3
    assert all(words[2] == f"--workdir={workdir}" for words in commands)


def notices(text):
    """TensorFlow's lines, by what it writes at every start and export."""
    words = ("oneDNN", "cuda", "absl::", "SavedModel", "Sharding", "fingerprint")
    return [line for line in text.splitlines() if any(word in line for word in words)]


@pytest.mark.slow
def test_training_shows_its_own_lines_and_none_of_tensorflows(workdir):
    shown = (workdir / "errors.txt").read_text()
    assert "update/s" in shown and "Chunks of" in shown
    assert notices(shown) == []


@pytest.mark.slow
def test_evaluate_repeats_what_training_measured(workdir):
    said = json.loads(run("evaluate", f"--workdir={workdir}").stdout)
    final = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("test_accuracy", "test_accuracy_ema"):
        assert said[name] == pytest.approx(final[name], abs=1e-5)
    assert said["examples"] == 359


@pytest.mark.slow
def test_predict_classifies_files_and_folders_and_names_broken_ones(workdir, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "two.jpg")
    done = run("predict", f"--workdir={workdir}", "--format=json", "--top=2", tmp_path)
    one, two = json.loads(done.stdout)
    assert done.returncode == 0 and one["path"].endswith("one.png")
    assert len(one["classes"]) == len(two["probabilities"]) == 2
    assert one["probabilities"][0] >= one["probabilities"][1]
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    done = run("predict", f"--workdir={workdir}", broken, tmp_path / "one.png")
    assert done.returncode == 1
    assert f"Unreadable image: {broken}" in done.stdout
    assert one["classes"][0] in done.stdout.splitlines()[1]


@pytest.mark.slow
def test_predict_writes_a_table_that_agrees_with_single_images(workdir, tmp_path):
    random = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(70)]
    for name in names:
        pixels = random.integers(0, 256, (12, 10), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "0.png").write_text("not an image")
    table = tmp_path / "in.csv"
    table.write_text("".join(f"{name},x\n" for name in ("scan", *names)))
    output = tmp_path / "out.csv"
    flags = (f"--workdir={workdir}", f"--table={table}", f"--output={output}")
    done = run("predict", *flags, "--path_column=scan")
    assert done.returncode == 1, done.stderr
    assert "70 images; 1 of them could not be classified" in done.stdout
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == names and rows[3]["x"] == "x"
    assert list(rows[0])[2:4] == ["predicted", "probability_0"]
    assert rows[0]["predicted"] == "" and "Unreadable image" in rows[0]["error"]
    done = run("predict", f"--workdir={workdir}", "--format=json", tmp_path / "69.png")
    (one,) = json.loads(done.stdout)
    assert rows[69]["predicted"] == one["classes"][0]
    probability = float(rows[69][f"probability_{one['classes'][0]}"])
    assert probability == pytest.approx(one["probabilities"][0], abs=1e-4)
    assert sum(float(rows[5][f"probability_{digit}"]) for digit in range(10)) == (
        pytest.approx(1, abs=1e-4)
    )


@pytest.mark.slow
def test_export_makes_the_next_version_and_its_card_is_printed(workdir, tmp_path):
    for version in ("1", "2"):
        models = tmp_path / "models"
        done = run("export", f"--workdir={workdir}", f"--output={models}")
        assert done.returncode == 0, done.stderr
        assert f"compared: {models / version}" in done.stdout
        assert notices(done.stderr) == []
    card = run("privacy", f"--card={models}")
    assert (
        card.stdout.startswith("# Privacy card")
        and "| epsilon | 8.000 |" in card.stdout
    )
    as_json = json.loads(run("privacy", f"--card={models}", "--format=json").stdout)
    spent = json.loads((workdir / "privacy.json").read_text())
    assert as_json["privacy"]["epsilon"] == spent["epsilon"]
    done = run("export", f"--workdir={tmp_path}", f"--output={models}")
    assert done.returncode == 2 and "no checkpoint" in done.stderr
    done = run("privacy", f"--card={tmp_path}")
    assert done.returncode == 2 and "Expected a model exported" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["x.png"], "either --workdir or --server"),
        (["--workdir=a", "--server=b", "x.png"], "either --workdir or --server"),
        (["--workdir=a", "--repeat=3", "x.png"], "give --server"),
        (["--server=http://localhost:1"], "No images"),
        (["--server=localhost", "x.png"], "http://host:8501"),
        (["--workdir=a", "--table=x.csv"], "--table and --output together"),
        (
            ["--workdir=a", "--table=x.csv", "--output=y.csv", "x.png"],
            "received also x.png",
        ),
    ],
)
def test_predict_says_what_it_needs(flags, words):
    done = run("predict", *flags)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("epsilon", 7.9999),
        ("noise_multiplier", 2.5284),
        ("updates", 2_400),
        ("batch_size", 4096),
    ],
)
def test_privacy_finds_the_fourth_of_four(missing, expected, tmp_path):
    given = {
        "epsilon": 8,
        "noise_multiplier": 2.52841,
        "updates": 2_400,
        "batch_size": 4096,
    }
    picture = tmp_path / "curve.png"
    done = run(
        "privacy",
        "--num_examples=50000",
        "--delta=1e-5",
        "--format=json",
        *([f"--picture={picture}"] if missing == "epsilon" else []),
        *(f"--{name}={value}" for name, value in given.items() if name != missing),
    )
    answer = json.loads(done.stdout.split("\n\nPicture")[0])
    name = "expected_batch_size" if missing == "batch_size" else missing
    assert answer[name] == pytest.approx(expected, rel=2e-4)
    assert answer["epsilon"] <= 8.0005
    if missing == "epsilon":
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_privacy_says_what_holds_for_people_with_several_examples():
    plan = PrivacyPlan(
        noise_multiplier=3.0,
        delta=1e-5,
        num_examples=500,
        expected_batch_size=40,
        updates=50,
    )
    given = "--num_examples=500 --delta=1e-5 --noise_multiplier=3 --updates=50"
    command = ["privacy", *given.split(), "--batch_size=40", "--group_size=4"]
    answer = json.loads(run(*command, "--format=json").stdout)
    assert answer["group_size"] == 4
    assert answer["group_epsilon"] == plan.epsilon(group_size=4)
    shown = round_up(plan.epsilon(group_size=4))
    table = run(*command).stdout
    assert f"epsilon, group of 4   {shown}" in table
    assert f"For anybody with at most 4 examples: ({shown}, 1e-05)" in table


SMALL = ["--num_examples=500", "--delta=1e-5", "--updates=50", "--batch_size=40"]


@pytest.mark.slow
def test_privacy_explains_epsilons_beside_each_other_and_draws_them(tmp_path):
    audit, picture = tmp_path / "audit.json", tmp_path / "attacks.png"
    reached = {"0.01": {"rate": 0.03, "interval": [0.02, 0.05]}}
    attack = {"auc": 0.6, "true_positive_rates": reached}
    audit.write_text(
        json.dumps(
            {
                "training": {"attacks": {"black box, image canaries": attack}},
                "membership": {"loss": attack},
            }
        )
    )
    command = ["privacy", *SMALL, "--explain", "--epsilons=1,8"]
    done = run(*command, f"--picture={picture}", f"--audit={audit}")
    assert done.returncode == 0, done.stderr
    assert Image.open(picture).width > 500
    answer = json.loads(run(*command, "--format=json").stdout)["explained"]
    assert [each["epsilon"] for each in answer] == pytest.approx([1, 8], rel=1e-3)
    for each in answer:
        plan = PrivacyPlan.for_epsilon(
            epsilon=round(each["epsilon"]),
            delta=1e-5,
            num_examples=500,
            expected_batch_size=40,
            updates=50,
        )
        curve = trade_off(Ledger.planned(plan), plan.delta)
        rates = each["true_positive_rates"]["0.01"]
        assert rates["curve"] == curve.true_positive_rate(0.01)
        assert rates["curve"] < rates["epsilon_and_delta_alone"]
        assert (each["mu"], each["advantage"]) == (curve.mu, curve.advantage)
        assert each["posterior"]["0.5"] == curve.posterior(0.5, 1e-5)
        shown = f"{math.ceil(rates['curve'] * 10_000) / 100:.2f} %"
        assert f"finds at most {shown} of those who are" in done.stdout
        assert f"epsilon = {round_up(each['epsilon'])}" in done.stdout


@pytest.mark.slow
def test_privacy_solves_for_the_success_of_attacks():
    command = ["privacy", *SMALL, "--attack_success=0.1", "--at_fpr=0.02", "--explain"]
    answer = json.loads(run(*command, "--format=json").stdout)
    plan = PrivacyPlan(
        noise_multiplier=answer["noise_multiplier"],
        delta=1e-5,
        num_examples=500,
        expected_batch_size=40,
        updates=50,
    )
    curve = trade_off(Ledger.planned(plan), plan.delta)
    assert 0.0999 < curve.true_positive_rate(0.02) <= 0.1
    assert answer["epsilon"] == plan.epsilon()
    assert answer["explained"][0]["mu"] == curve.mu


@pytest.mark.slow
def test_privacy_explains_a_plan_without_noise_as_no_guarantee(tmp_path):
    picture = tmp_path / "none.png"
    command = ["privacy", *SMALL, "--noise_multiplier=0", "--explain"]
    done = run(*command, f"--picture={picture}")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "No guarantee: an attack may find everybody" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    (answer,) = json.loads(run(*command, "--format=json").stdout)["explained"]
    assert answer["epsilon"] is answer["mu"] is None and not answer["guaranteed"]


@pytest.mark.slow
def test_privacy_explains_and_verifies_a_card(tmp_path):
    path = tmp_path / "card.json"
    card = card_of(plan_of(updates=20), updates=20)
    path.write_text(json.dumps(card))
    shown = round_up(card["privacy"]["epsilon"])
    done = run("privacy", f"--card={path}", "--explain")
    assert done.returncode == 0, done.stderr
    assert f"epsilon = {shown}: an attack that accuses" in done.stdout
    done = run("privacy", f"--verify={path}")
    assert done.returncode == 0, done.stderr
    assert "agrees   epsilon" in done.stdout and "checks agree" in done.stdout
    card["privacy"]["epsilon"] /= 2
    path.write_text(json.dumps(card))
    done = run("privacy", f"--verify={path}", "--format=json")
    assert done.returncode == 1 and not done.stderr
    (check,) = [each for each in json.loads(done.stdout) if not each["agrees"]]
    assert check["name"] == "epsilon" and 2 * check["stated"] == check["expected"]
    path.write_text(json.dumps(card_of(plan_of(), conditions=["chosen_seed"])))
    done = run("privacy", f"--card={path}", "--explain")
    assert "No guarantee" in done.stdout and "finds at most" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epsilons=1,2"], "--epsilons is for --explain"),
        (["--explain", "--epsilons=1,x"], "must be numbers such as 1,4,8"),
        (["--explain", "--epsilons=1", "--epsilon=2"], "without --epsilon and"),
        (["--explain", "--epsilon=1", "--audit=a"], "--audit is drawn into --picture"),
        (["--attack_success=0.1", "--epsilon=1"], "instead of --epsilon and"),
        (["--attack_success=0.001"], "attack_success must be"),
        (["--verify=a", "--card=b"], "Give --verify alone"),
        (["--registry"], "Give --registry with --card"),
        (["--verify=nowhere"], "no privacy card in"),
        (
            ["--explain", "--epsilon=9", "--audit=setup.py", "--picture=nowhere/x.png"],
            "setup.py is not an audit",
        ),
    ],
)
def test_privacy_refuses_what_does_not_go_together(flags, words):
    done = run("privacy", *SMALL, *flags)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_preview_draws_the_views(tmp_path):
    output = tmp_path / "views.png"
    done = run("preview_views", "--config=configs/digits.py", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert Image.open(output).width > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("train",), "--config is missing"),
        (("train", "--config=configs/digits.py"), "--workdir is missing"),
        (("train", "--config=configs/digits.py", "--config.data.nme=x"), "'nme'"),
        (("train", "--config=configs/nowhere.py", "--workdir=x"), "nowhere.py"),
        (
            ("train", *DIGITS, "--workdir=nowhere/x", "--config.seed=-1"),
            "seed must be in [0, 2**128)",
        ),
        (("train", *DIGITS, "--config.ema_decay=None"), "ema_decay needs a value"),
        (("predict", "--workdir=nowhere", "x.png"), "holds no checkpoint"),
        (("privacy", "--num_examples=100", "--delta=1e-5"), "exactly three of"),
        (
            (
                "privacy",
                "--num_examples=100",
                "--delta=2",
                "--updates=5",
                "--epsilon=1",
                "--batch_size=5",
            ),
            "delta must be",
        ),
        (
            (
                "privacy",
                "--num_examples=100",
                "--delta=1e-3",
                "--updates=5",
                "--noise_multiplier=1",
                "--batch_size=5",
                "--accountant=rdp",
                "--group_size=2",
            ),
            "by the PLD accountant only",
        ),
    ],
)
def test_mistakes_get_one_clear_message_and_a_failing_status(command, words):
    done = run(*command)
    assert done.returncode not in (0, None)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "nowhere").exists()


@pytest.mark.slow
def test_a_run_without_a_test_and_with_a_chosen_seed_from_start_to_export(tmp_path):
    """What is not measured is not printed; noise is given, so no epsilon."""
    done = run(
        "train",
        "--config=configs/digits.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.privacy.updates=1",
        "--config.privacy.expected_batch_size=10",
        "--config.privacy.accountant=rdp",
        "--config.privacy.epsilon=None",
        "--config.privacy.noise_multiplier=2",
        "--config.views.base=1",
        "--config.views.mixed=0",
        "--config.run.test=False",
        "--config.seed=5",
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" not in done.stdout
    assert "\nNo guarantee while the seed is known" in done.stdout
    assert ", were the seed secret" in done.stdout
    export = next(line for line in done.stdout.splitlines() if "bin/export.py" in line)
    assert export.endswith("--research")
    given = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}"]
    refused = run("export", *given)
    assert refused.returncode == 2 and "say --research" in refused.stderr
    assert not (tmp_path / "models").exists()
    assert run("export", *given, "--research").returncode == 0
    card = run("privacy", f"--card={tmp_path / 'models'}").stdout
    assert card.startswith("# Privacy card\n\n**No guarantee while the seed is known")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keras_json", "words"),
    [
        ("{}", "holds no checkpoint"),
        ('{"image_data_format": "channels_first"}', "Set it to 'channels_last'"),
    ],
)
def test_a_mistake_is_the_only_line_on_the_screen(keras_json, words, tmp_path):
    (tmp_path / "keras.json").write_text(keras_json)
    done = run("evaluate", f"--workdir={tmp_path}", KERAS_HOME=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.slow
def test_a_pool_is_generated_and_the_same_command_makes_what_it_lacks(tmp_path):
    arguments = (
        "generate_pool",
        *DIGITS,
        f"--config.pool.path={tmp_path}",
        "--config.pool.generator=glyphs",
        "--config.pool.images_per_class=1",
    )
    done = run(*arguments)
    assert f"{tmp_path} holds 10 images of 10 classes, 8x8x1." in done.stdout
    first, *others = tmp_path.glob("*/*.png")
    before = first.read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    done = run(*arguments)
    assert "holds 10 images" in done.stdout, done.stderr
    assert first.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in others} == kept


@pytest.mark.slow
def test_a_pool_of_examples_that_are_not_trained_on(tmp_path):
    """And with too few of them, one that says so and makes nothing."""
    arguments = (
        "generate_pool",
        *DIGITS,
        f"--config.pool.path={tmp_path / 'pool'}",
        "--config.pool.images_per_class=3",
        "--import_left_out",
    )
    done = run(*arguments, "--config.data.train_examples=1430")
    assert "leaves out fewer than pool.images_per_class = 3" in done.stderr
    assert not (tmp_path / "pool").exists()
    done = run(*arguments, "--config.data.train_examples=1000")
    assert "holds 30 images of 10 classes, 8x8x1." in done.stdout, done.stderr
    pool = dpmix_tf.SyntheticPool.load(tmp_path / "pool")
    settings = {"train_examples": 1000, "validation_fraction": 0.0}
    train = dpmix_tf.data.load_dataset("digits", **settings).train
    images, labels = train.read(np.arange(len(train)))
    private = {image.tobytes() for image in images}
    assert not private & {image.tobytes() for image in pool.images}
    assert np.bincount(pool.labels).tolist() == [3] * 10


def test_an_address_is_refused_as_a_config():
    done = run("train", "--config=https://host/x.py", "--workdir=x")
    assert done.returncode == 2 and "remote address" in done.stderr


def test_legacy_keras_is_refused():
    done = run("privacy", "--help", TF_USE_LEGACY_KERAS="1")
    assert done.returncode != 0 and "dpmix_tf needs Keras 3" in done.stderr


def test_another_keras_backend_is_refused():
    done = run("privacy", "--help", KERAS_BACKEND="jax")
    assert done.returncode != 0
    assert "dpmix_tf needs Keras on TensorFlow" in done.stderr
