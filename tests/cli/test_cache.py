"""The command that encodes views ahead of training, run as a user runs it."""

import pytest

from tests.cli.test_commands import run
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SETTINGS = [
    "--config=configs/digits.py",
    "--config.network.name=scattering",
    "--config.network.features=group_norm",
    "--config.views.visits=2",
    "--config.views.base=2",
    "--config.views.mixed=1",
    "--config.data.train_examples=150",
    "--config.privacy.updates=2",
    "--config.privacy.expected_batch_size=20",
    "--config.privacy.accountant=rdp",
]


def files(folder):
    found = sorted(folder.glob("*/block-*.bin"))
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Encoded by two shards, the second one first."""
    folder = tmp_path_factory.mktemp("cache") / "there"
    for shard, words in (("2/2", "the other shards"), ("1/2", "Train with the same")):
        given = [*SETTINGS, f"--cache_dir={folder}", f"--shard={shard}"]
        done = run("cache", *given)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    return folder


def test_training_finds_what_was_encoded_ahead(cache, tmp_path):
    before = files(cache)
    assert len(before) == 3  # training, validation, test
    where = f"--config.run.cache_dir={cache}"
    done = run("train", *SETTINGS, where, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert files(cache) == before
    assert "Encoding" not in done.stderr


def test_a_workdir_stands_for_its_cache(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert run("cache", *SETTINGS, workdir).returncode == 0
    before = files(tmp_path / "run" / "cache")
    assert len(before) == 3
    assert run("train", *SETTINGS, workdir).returncode == 0
    assert files(tmp_path / "run" / "cache") == before
    done = run("cache", workdir, "--list")
    assert done.returncode == 0
    keys = [path.parent.name for path in before]
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == keys
    assert (
        "135 examples, visits 2, views 3, features 324 float16, 0.5 MB" in done.stdout
    )
    assert "augment = affine, base = 2, mixed = 1; 1 of 1 blocks" in done.stdout
    assert "plain images" in done.stdout


def test_damage_is_found_and_left_to_the_next_run(cache):
    assert run("cache", f"--cache_dir={cache}", "--verify").stdout.count(
        ", verified"
    ) == len(files(cache))
    path = next(iter(files(cache)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = run("cache", f"--cache_dir={cache}", "--verify")
    assert done.returncode == 1 and "1 damaged" in done.stdout
    assert path.exists()
    assert run("cache", *SETTINGS, f"--cache_dir={cache}").returncode == 0
    assert path.read_bytes() == whole


def test_views_are_deleted_by_key_and_nothing_else_ever(cache, tmp_path):
    (cache / "notes.txt").write_text("mine")
    first, *others = [path.parent for path in files(cache)]
    done = run("cache", f"--cache_dir={cache}", "--delete=nothing")
    assert done.returncode == 2 and first.name in done.stderr
    done = run("cache", f"--cache_dir={cache}", f"--delete={first.name}")
    assert done.returncode == 0 and not first.exists()
    (others[0] / "key.json").write_text("{")  # damaged ones can be deleted too
    assert run("cache", f"--cache_dir={cache}", "--list").returncode == 1
    (others[1] / "mine.txt").write_text("mine")
    done = run("cache", f"--cache_dir={cache}", "--delete=all")
    assert done.returncode == 2 and "put there by" in done.stderr
    (others[1] / "mine.txt").unlink()
    assert run("cache", f"--cache_dir={cache}", "--delete=all").returncode == 0
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Give one of --config"),
        (["--list"], "exactly one of --cache_dir"),
        (["--cache_dir=nowhere", "--list"], "no cache folder nowhere"),
        (["--cache_dir=a", "--list", "--verify"], "Give one of"),
        (SETTINGS[:1], "exactly one of --cache_dir"),
        ([*SETTINGS[:1], "--cache_dir=nowhere", "--shard=0/2"], "1 <= i <= n"),
        ([*SETTINGS[:2], "--cache_dir=nowhere"], "Set views.visits"),
        ([*SETTINGS[:1], "--cache_dir=nowhere"], "this network has none"),
        (
            ["--config=configs/experiments/mixers.py", "--cache_dir=nowhere"],
            "Expected the configuration of a run",
        ),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(flags, words):
    done = run("cache", *flags)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert words in done.stderr
    assert not (ROOT / "nowhere").exists()
