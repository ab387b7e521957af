"""Seeds of an experiment: secret, paired, and never of two secrets at once."""

import json
import shutil

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import Run, Runner, Study, secret
from dpmix_tf.experiments.secret import Secret, open_secret
from tests.experiments import tiny


def begun(root, **settings):
    """The secret of an experiment's folder, which is claimed for it."""
    kept = open_secret(root, public=False, **settings)
    Study(tiny.get_config()).claim(root, kept.fingerprint)
    return kept


def test_a_seed_follows_from_secret_number_and_purpose_alone():
    mine, other = Secret(b"m" * 32), Secret(b"o" * 32)
    seeds = {
        one.seed(purpose, number)
        for one in (mine, other)
        for purpose in ("test", "tuning")
        for number in (1, 2, 1_000_001)
    }
    assert len(seeds) == 12 and all(2**100 < seed < 2**128 for seed in seeds)
    assert mine.seed("test", 1) == Secret(b"m" * 32).seed("test", 1)
    # As it was when the first experiments were run with it.
    assert f"{mine.seed('test', 1):032x}" == "f828165c83bc681aca451390ec0691ea"


def test_a_secret_is_drawn_once_for_its_owner_alone_and_not_shown(
    tmp_path, monkeypatch
):
    load, modes = secret._load, []

    def noting(path):
        modes.append(path.stat().st_mode & 0o777)
        return load(path)

    monkeypatch.setattr(secret, "_load", noting)
    drawn = begun(tmp_path)
    path = tmp_path / secret.FILE
    assert modes == [0o600]  # from its first moment
    assert len(drawn.key) == 32 and drawn.key.hex() in path.read_text()
    assert open_secret(tmp_path, public=False) == drawn
    (tmp_path / "other").mkdir()
    assert open_secret(tmp_path / "other", public=False) != drawn
    assert drawn.key.hex() not in f"{drawn!r} {drawn}" and "key" not in repr(drawn)
    known = json.loads((tmp_path / "experiment.json").read_text())
    assert known["secret_fingerprint"] == drawn.fingerprint
    assert drawn.key.hex() not in (tmp_path / "experiment.json").read_text()


def test_a_copied_secret_is_closed_to_others(tmp_path):
    drawn = begun(tmp_path)
    (tmp_path / secret.FILE).chmod(0o644)
    assert open_secret(tmp_path, public=False) == drawn
    assert (tmp_path / secret.FILE).stat().st_mode & 0o777 == 0o600


def test_a_folder_never_mixes_public_and_secret_seeds(tmp_path):
    hidden, public = tmp_path / "hidden", tmp_path / "public"
    for folder in (hidden, public):
        folder.mkdir()
    begun(hidden)
    with pytest.raises(DPMixError, match="secret seeds.*Leave out --public_seeds"):
        open_secret(hidden, public=True)
    assert open_secret(public, public=True) is None
    study = Study(tiny.get_config(), public_seeds=True)
    study.claim(public)
    with pytest.raises(DPMixError, match="public seeds.*Say --public_seeds"):
        open_secret(public, public=False)
    # So has a folder from before there were secrets.
    kept = json.loads((public / "experiment.json").read_text())
    del kept["secret_fingerprint"]
    (public / "experiment.json").write_text(json.dumps(kept))
    with pytest.raises(DPMixError, match="public seeds"):
        open_secret(public, public=False)
    assert open_secret(public, public=True) is None
    study.claim(public)
    assert not (public / secret.FILE).exists()


def test_a_secret_that_is_gone_replaced_or_damaged_is_not_drawn_again(tmp_path):
    kept = begun(tmp_path)
    path = tmp_path / secret.FILE
    text = path.read_text()
    path.unlink()
    with pytest.raises(DPMixError, match=f"is gone.*fingerprint {kept.fingerprint}"):
        open_secret(tmp_path, public=False)
    assert not path.exists()
    path.write_text(json.dumps({"secret": "ab" * 32}))
    with pytest.raises(DPMixError, match="holds a different secret") as error:
        open_secret(tmp_path, public=False)
    assert "abab" not in str(error.value)
    for damaged in ("", "[1]", text[:40], '{"secret": "abcdef"}', "\xff"):
        path.write_text(damaged)
        with pytest.raises(DPMixError, match="does not hold a secret") as error:
            open_secret(tmp_path, public=False)
        assert "abcdef" not in str(error.value) and text[12:30] not in str(error.value)


def test_all_shards_but_the_first_need_its_secret(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    drawn = begun(first)
    with pytest.raises(DPMixError, match="start --shard=1/n first, and copy"):
        Runner(Study(tiny.get_config()), second, shard=(2, 2)).run()
    assert not (second / "experiment.json").exists()
    shutil.copy(first / secret.FILE, second)
    assert begun(second, draw=False) == drawn


def pretend_begun(root, run, kept):
    """A run's folder, as its runner makes it."""
    folder = root / run.name
    folder.mkdir(parents=True)
    if kept is not None:
        secret.write_pairing(root, folder, kept, purpose="test", number=run.seed)
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.mark.parametrize("theirs", ["secret", "public"])
def test_a_run_of_another_secret_is_not_put_among_the_others(
    tmp_path, theirs, monkeypatch
):
    """As of a machine that was not given the first one's secret."""
    monkeypatch.setattr(Runner, "_train", lambda self: None)
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir(), other.mkdir()
    begun(mine)
    kept = begun(other) if theirs == "secret" else None
    study = Study(tiny.get_config())
    run = study.tuning_runs("mixed", 8.0)[0]
    pretend_begun(other, run, kept)
    shutil.copytree(other / run.name, mine / run.name)
    with pytest.raises(DPMixError, match="their differences are not paired"):
        Runner(study, mine).run()
    assert not (mine / "results.jsonl").exists()


def test_a_run_is_given_the_seed_of_its_number_in_every_arm(tmp_path):
    kept = begun(tmp_path)
    seeds = {
        (arm, number): secret.seed_of_run(
            pretend_begun(tmp_path, Run(arm, epsilon, number, (), False), kept)
        )
        for arm, epsilon in (("plain", 8.0), ("mixed", 1.0))
        for number in (1, 2)
    }
    for number in (1, 2):
        assert seeds["plain", number] == seeds["mixed", number]
        assert seeds["plain", number] == kept.seed("test", number)
    assert seeds["plain", 1] != seeds["plain", 2]
    (tmp_path / "alone").mkdir()
    assert secret.seed_of_run(tmp_path / "alone") is None
    # Moved into another experiment's folder, it finds another secret there.
    other = tmp_path / "other"
    other.mkdir()
    begun(other)
    name = Run("plain", 8.0, 1, (), False).name
    shutil.copytree(tmp_path / name, other / name)
    with pytest.raises(DPMixError, match="started with a different secret"):
        secret.seed_of_run(other / name)
