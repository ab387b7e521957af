"""Several replicas and several processes against one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from scipy import stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.training import Trainer, checkpoints, cluster, make_strategy
from tests.conftest import ROOT, free_ports, spending, train_command
from tests.training import replica_run, resume_config


def free_addresses(count):
    return [f"localhost:{port}" for port in free_ports(count)]


def start(commands):
    """Starts one process a command; several form a cluster of workers."""
    workers = free_addresses(len(commands))
    processes = []
    for index, command in enumerate(commands):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker"}}
        task["task"]["index"] = index
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if len(commands) > 1:
            environment["TF_CONFIG"] = json.dumps(task)
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes):
    """What they printed; those that fail, or never end, fail the test."""
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # workers that wait for a lost one ignore SIGTERM
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


def run_replicas(strategy, folder, processes=1):
    """The weights that each process ended with."""
    paths = [folder / f"{strategy}{index}.npz" for index in range(processes)]
    run = ["-m", "tests.training.replica_run", strategy]
    finish(start([[*run, path] for path in paths]))
    return [dict(np.load(path)) for path in paths]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    strategy = make_strategy("none")
    noise = replica_run.NOISE
    encoded = replica_run.train_encoded(strategy, tmp_path_factory.mktemp("cache"))
    weights = replica_run.train(strategy, 0.0) | replica_run.train(strategy, noise)
    return weights | encoded


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return run_replicas("multi_worker", folder, processes=2)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(weights[name], array, rtol=0, atol=1e-5)


def test_the_batches_compared_leave_replicas_without_examples():
    batches = replica_run.batches(0.0, seed=4)
    sizes = [len(batches.indices(update)) for update in range(replica_run.UPDATES)]
    assert 1 in sizes and max(sizes) > 2, sizes


@pytest.mark.slow
def test_mirrored_replicas_train_like_one(one_process, tmp_path):
    (weights,) = run_replicas("mirrored", tmp_path)
    assert_same(weights, one_process)


@pytest.mark.slow
def test_two_workers_train_like_one_process(one_process, two_workers):
    # With noise, too: it is the same noise, added once.
    assert_same(two_workers[0], one_process)
    assert_same(two_workers[1], one_process)


@pytest.mark.slow
def test_two_workers_noise_has_the_planned_deviation(two_workers):
    noise = replica_run.NOISE

    def first_weights(noise):  # after one update from the same weights
        names = [n for n in two_workers[0] if n.startswith(f"{noise} first")]
        return np.concatenate([two_workers[0][name].ravel() for name in names])

    moved = first_weights(noise) - first_weights(0.0)
    plan = replica_run.plan(noise)
    scale = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    added = moved / replica_run.LEARNING_RATE
    assert stats.kstest(added, "norm", (0, scale)).pvalue > 1e-3


def test_replicas_share_a_batch_without_overlap_or_loss():
    batches = replica_run.batches(1.0, seed=4)
    for replicas in (1, 2, 3):
        parts = [
            list(
                batches.dataset(replicas=range(place, place + 1), num_replicas=replicas)
            )
            for place in range(replicas)
        ]
        together = list(
            batches.dataset(replicas=range(replicas), num_replicas=replicas)
        )
        for update in range(replica_run.UPDATES):
            of_each = [part[update].ids.numpy() for part in parts]
            np.testing.assert_array_equal(
                np.sort(np.concatenate(of_each)), batches.indices(update)
            )
            for place, ids in enumerate(of_each):
                same = together[update * replicas + place].ids
                np.testing.assert_array_equal(same, ids)


def updates_spent(workdir):
    path = workdir / "privacy.json"
    return json.loads(path.read_text())["updates"] if path.exists() else 0


@pytest.mark.slow
def test_a_lost_worker_is_reported_and_one_process_goes_on(tmp_path):
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    Trainer(resume_config.get_config(), whole).run()
    elsewhere = tmp_path / "elsewhere"  # no worker but the first writes
    chief, worker = start(
        [
            train_command(folder, "--strategy=multi_worker")
            for folder in (lost, elsewhere)
        ]
    )
    while updates_spent(lost) < 10:
        assert chief.poll() is None and worker.poll() is None
        time.sleep(0.02)
    worker.kill()
    worker.communicate()
    said, _ = chief.communicate(timeout=300)
    assert chief.returncode == 2, said[-3000:]
    assert "A worker was lost" in said and "Traceback" not in said
    assert not elsewhere.exists()
    spent = updates_spent(lost)
    assert 10 <= spent < 60
    finish(start([train_command(lost)]))
    assert spending(lost) == spending(whole)
    assert (lost / "config.json").read_text() == (whole / "config.json").read_text()
    # 60 updates have blown up what rounding in another order began.
    expected = checkpoints.load_latest(whole / "checkpoints")[0]
    for name, array in checkpoints.load_latest(lost / "checkpoints")[0].items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "described",
    [
        None,
        "not JSON",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_cluster_that_is_not_understood_is_refused(described, monkeypatch):
    if described is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", described)
    with pytest.raises(DPMixError, match="TF_CONFIG"):
        make_strategy("multi_worker")


def test_an_unknown_strategy_is_refused():
    with pytest.raises(DPMixError, match="none, mirrored, multi_worker"):
        make_strategy("tpu")


def test_one_process_is_its_own_chief():
    strategy = make_strategy("none")
    assert cluster.num_workers(strategy) == 1 and cluster.is_chief(strategy)
    seed = 2**127 + 3
    assert cluster.seed_from_chief(strategy, seed) == seed


def told_by_two(monkeypatch, change):
    """As if a second worker took part, that knows the first one's facts, changed."""

    def texts(strategy, text):
        other = json.loads(text) | {"chief": False, "address": "host2:1"}
        change(other["facts"])
        return [text, text, json.dumps(other)]

    monkeypatch.setattr(cluster, "texts_of_workers", texts)


def test_a_worker_with_other_facts_is_refused_by_name(monkeypatch):
    facts = {"privacy": {"clip_norm": 1.0, "delta": 1e-5}, "training_data": "ab"}
    strategy = make_strategy("none")
    cluster.refuse_different_workers(strategy, facts)
    told_by_two(monkeypatch, lambda facts: None)
    cluster.refuse_different_workers(strategy, facts)

    def change(facts):
        facts["privacy"]["clip_norm"] = 100.0
        del facts["training_data"]

    told_by_two(monkeypatch, change)
    with pytest.raises(DPMixError) as error:
        cluster.refuse_different_workers(strategy, facts)
    assert str(error.value).splitlines()[1:3] == [
        "  privacy.clip_norm: 1.0 at the first worker, 100.0 at host2:1",
        '  training_data: "ab" at the first worker, nothing at host2:1',
    ]


@pytest.mark.parametrize(
    "name, value",
    [
        ("training_data", "another fingerprint"),
        ("plan", {"clip_norm": 100.0}),
        ("software", {"tensorflow": "1.0"}),
        ("views", {"base": 5}),
        ("pool", "another digest"),
    ],
)
def test_a_trainer_tells_what_decides_over_the_guarantee(
    name, value, tmp_path, monkeypatch
):
    def change(facts):
        if name in facts:
            facts[name] = value

    told_by_two(monkeypatch, change)
    with pytest.raises(DPMixError, match=rf"\n  {name}.* at the first worker"):
        Trainer(resume_config.get_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_places_and_the_seed_may_differ():
    config = resume_config.get_config()
    other = resume_config.get_config()
    other.seed, other.data.data_dir, other.pool.path = 6, "/data", "/pool"
    other.run.chunk_size = 3
    assert cluster.shared_facts(other) == cluster.shared_facts(config)
    assert "seed" not in cluster.shared_facts(config, plan={})
    encoder = {"name": "pretrained", "encoder": "a.keras", "sha256": "12"}
    config.network, other.network = encoder, encoder | {"encoder": "/b.keras"}
    assert cluster.shared_facts(other) == cluster.shared_facts(config)
    other.network.sha256 = "34"
    assert cluster.shared_facts(other) != cluster.shared_facts(config)


@pytest.mark.slow
def test_workers_of_different_clip_norms_all_stop_before_training(tmp_path):
    workers = start(
        [
            train_command(tmp_path / folder, "--strategy=multi_worker", *more)
            for folder, more in (
                ("first", []),
                ("second", ["--config.privacy.clip_norm=100.0"]),
            )
        ]
    )
    for worker in workers:
        said, _ = worker.communicate(timeout=300)
        assert worker.returncode == 2, said[-3000:]
        assert "privacy.clip_norm: 1.0 at the first worker, 100.0 at" in said
    assert not (tmp_path / "first" / "config.json").exists()


def test_workers_wait_until_each_has_reached_all():
    places = {a: cluster._host_and_port(a) for a in free_addresses(3)}
    waiting = [
        threading.Thread(target=cluster._wait_for_workers, args=(places, here))
        for here in places
    ]
    servers = contextlib.ExitStack()
    with servers:
        for thread in waiting:
            thread.start()
        # TensorFlow's server takes over where a worker has reached all others.
        while any(thread.is_alive() for thread in waiting):
            for thread, (_, port) in zip(waiting, places.values(), strict=True):
                with contextlib.suppress(OSError):
                    thread.is_alive() or servers.enter_context(
                        socket.create_server(("", port))
                    )
            time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_alone_says_whom_it_waits_for_and_hears_signals(
    number, monkeypatch, capfd
):
    here, other = free_addresses(2)
    task = {"cluster": {"worker": [here, other]}, "task": {"type": "worker"}}
    task["task"]["index"] = 0
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    heard = types.SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda _: os.kill(os.getpid(), number)
    )
    monkeypatch.setattr(cluster, "time", heard)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=f"waiting for workers: {other} "):
        make_strategy("multi_worker")
    assert signal.getsignal(signal.SIGTERM) == before
    assert (
        f"Waiting for workers: {other} (Connection refused)" in capfd.readouterr().err
    )


def test_a_port_that_is_taken_is_named(monkeypatch):
    here, other = free_addresses(2)
    task = {"cluster": {"worker": [here, other]}, "task": {"type": "worker"}}
    task["task"]["index"] = 0
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    with (
        socket.create_server(("", cluster._host_and_port(here)[1])),
        pytest.raises(DPMixError, match=f"cannot listen at {here}"),
    ):
        make_strategy("multi_worker")


@pytest.mark.slow
def test_the_command_stops_while_it_waits_for_workers(tmp_path):
    lone, never = start([train_command(tmp_path, "--strategy=multi_worker")] * 2)
    never.kill()
    never.communicate()
    lines = []
    for line in lone.stdout:
        lines.append(line)
        if "Waiting for workers" in line:
            lone.send_signal(signal.SIGTERM)
    assert lone.wait(timeout=300) == 130, "".join(lines)
    assert "Stopped while waiting for workers" in "".join(lines)
    assert not list(tmp_path.iterdir())
