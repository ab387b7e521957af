"""Several replicas and several processes against one."""

import json
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.training import Trainer, checkpoints, cluster, make_strategy
from tests.conftest import ROOT, train_command
from tests.training import replica_run, resume_config


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


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
def one_process():
    strategy = make_strategy("none")
    noise = replica_run.NOISE
    return replica_run.train(strategy, 0.0) | replica_run.train(strategy, noise)


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
    said, _ = chief.communicate(timeout=60)
    assert chief.returncode == 2, said[-3000:]
    assert "A worker was lost" in said and "Traceback" not in said
    assert not elsewhere.exists()
    spent = updates_spent(lost)
    assert 10 <= spent < 60
    finish(start([train_command(lost)]))
    for name in ("privacy.json", "config.json"):
        assert (lost / name).read_text() == (whole / name).read_text()
    # 60 updates have blown up what rounding in another order began.
    expected = checkpoints.load_latest(whole / "checkpoints")[0]
    for name, array in checkpoints.load_latest(lost / "checkpoints")[0].items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-3)


def test_the_optimizer_leaves_replicas_gradients_alone():
    optimizer = keras.optimizers.SGD(1.0)
    cluster.leave_gradients_as_they_are(optimizer)
    gradients = [tf.ones([2])]
    assert optimizer._all_reduce_sum_gradients(gradients) is gradients

    class Other:
        """As a later Keras might have it."""

    with pytest.raises(DPMixError, match="adds gradients up over replicas"):
        cluster.leave_gradients_as_they_are(Other())


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


def test_a_worker_with_other_examples_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "from_chief", lambda strategy, value: value + 1)
    with pytest.raises(DPMixError, match="differ from the first worker's"):
        Trainer(resume_config.get_config(), tmp_path / "run")
