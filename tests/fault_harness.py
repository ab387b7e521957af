r"""Kills, fills up and damages real commands many times; counts what is lost.

  make faults
  python -m tests.fault_harness --kills=50 --output=docs/faults.md

Every command is one that a user would run. After each fault the same command runs
again; what it ends with is compared with a run that nobody disturbed, to the last bit.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from dpmix_tf.files import write_text_atomic
from dpmix_tf.serving.privacy_card import exported_versions, read_card
from dpmix_tf.training import checkpoints
from tests.conftest import ROOT, spending, train_command
from tests.serving.c_api import CModel

_KILLS = flags.DEFINE_integer("kills", 50, "Random moments at which each is killed.")
_FLIPS = flags.DEFINE_integer("flips", 50, "Random bits flipped, and cuts made.")
_ONLY = flags.DEFINE_string("only", None, "Only this row of the table.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write the table to.")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}


def start(command, **outputs):
    """Starts a command of ours."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=ENVIRONMENT, cwd=ROOT, **outputs
    )


def generate(pool):
    return [
        ROOT / "bin" / "generate_pool.py",
        f"--config={ROOT / 'configs' / 'digits_diff.py'}",
        f"--config.pool.path={pool}",
        "--config.pool.images_per_class=40",
    ]


def run(command):
    """Runs to its end; (status, what it said)."""
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = start(command, **outputs, text=True)
    said, _ = process.communicate()
    return process.returncode, said


def kill_after(command, seconds):
    """Whether the command was killed; it may have ended before."""
    process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def check_workdir(workdir):
    """What a stranger finds there is whole, and no less is said to be spent than is."""
    saved = list((workdir / "checkpoints").glob("update_*.npz"))
    reached = 0
    for path in saved:
        _, metadata = checkpoints._load(path)
        reached = max(reached, metadata["updates"])
    spent = 0
    if (workdir / "privacy.json").exists():
        spent = json.loads((workdir / "privacy.json").read_text())["updates"]
    assert spent >= reached, f"{spent} updates on record, {reached} in a checkpoint"
    if (workdir / "config.json").exists():
        json.loads((workdir / "config.json").read_text())


def check_pool(pool):
    """Every image under its final name is whole, and so is the manifest."""
    for path in pool.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    if (pool / "manifest.json").exists():
        json.loads((pool / "manifest.json").read_text())


def images_of(pool):
    """SHA-256 of a pool's images and their names."""
    total = hashlib.sha256()
    for path in sorted(pool.rglob("*.png")):
        total.update(str(path.relative_to(pool)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def last_arrays(workdir):
    arrays, metadata = checkpoints.load_latest(workdir / "checkpoints")
    return arrays, metadata["updates"]


def same_run(one, other):
    """Whether two finished runs have the same weights, epsilon and metrics."""
    (arrays, updates), (others, other_updates) = last_arrays(one), last_arrays(other)
    return (
        updates == other_updates
        and all(np.array_equal(arrays[name], others[name]) for name in arrays)
        and spending(one) == spending(other)
        and (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    )


def kill(command_for, whole, kills, counts, *, check, same):
    """Kills a command anywhere between its start and its end, then lets it end.

    Args:
      command_for: folder -> the command that fills it.
      whole: folder for the run that nobody disturbs.
      kills: how many.
      counts: is added to.
      check: what must hold in a folder after a kill.
      same: whether two finished folders hold the same.
    """
    started = time.perf_counter()
    status, said = run(command_for(whole))
    assert status == 0, said[-2000:]
    takes = time.perf_counter() - started
    done = 0
    while done < kills:
        folder = whole.with_name(f"{whole.name}_killed{done}")
        for _ in range(min(random.randint(1, 4), kills - done)):
            if kill_after(command_for(folder), random.uniform(0, takes)):
                done += 1
                counts["kills"] += 1
            if folder.exists():
                check(folder)
        status, said = run(command_for(folder))
        assert status == 0, said[-2000:]
        counts["resumed to the same end" if same(folder, whole) else "lost"] += 1
        shutil.rmtree(folder)


def same_pool(one, other):
    """Whether two pools have the same images and manifest."""
    one_manifest, other_manifest = (
        json.loads((pool / "manifest.json").read_text()) for pool in (one, other)
    )
    return one_manifest == other_manifest and images_of(one) == images_of(other)


def kill_training(folder, kills, counts):
    """Kills trainings."""
    whole = folder / "whole"
    kill(train_command, whole, kills, counts, check=check_workdir, same=same_run)


def kill_generation(folder, kills, counts):
    """Kills the filling of a pool."""
    whole = folder / "whole_pool"
    kill(generate, whole, kills, counts, check=check_pool, same=same_pool)


def encode(cache):
    """Encodes the digits' views: three blocks under a frozen front of wavelets."""
    return [
        ROOT / "bin" / "cache.py",
        f"--config={ROOT / 'configs' / 'cifar10_scattering.py'}",
        "--config.data.name=digits",
        "--config.network.features=scattering",
        "--config.views.base=32",
        "--config.views.augment=affine",
        "--config.views.visits=6",
        f"--cache_dir={cache}",
    ]


def check_cache(cache):
    """Every block under its final name is whole: none is shorter than the first."""
    for key in cache.glob("*/key.json"):
        json.loads(key.read_text())
    for folder in cache.iterdir():
        sizes = [path.stat().st_size for path in sorted(folder.glob("block-*.bin"))]
        assert all(size == sizes[0] for size in sizes[:-1]), sizes


def same_cache(one, other):
    """Whether two caches hold the same files, byte for byte."""

    def digests(cache):
        return {
            path.relative_to(cache): hashlib.sha256(path.read_bytes()).digest()
            for path in cache.rglob("*")
            if path.is_file()
        }

    return digests(one) == digests(other)


def kill_encoding(folder, kills, counts):
    """Kills encodings; no block is left half written under its final name."""
    whole = folder / "whole_cache"
    kill(encode, whole, kills, counts, check=check_cache, same=same_cache)


def export_command(folder, models):
    """Exports the run that nobody disturbed."""
    return [
        ROOT / "bin" / "export.py",
        f"--workdir={folder / 'whole'}",
        f"--output={models}",
        "--research",  # its seed was chosen
    ]


def kill_export(folder, kills, counts):
    """Kills exports of a finished run; a version is whole or not there."""
    models = folder / "models"
    command = export_command(folder, models)
    started = time.perf_counter()
    status, said = run(command)
    assert status == 0, said[-2000:]
    takes = time.perf_counter() - started
    while counts["kills"] < kills:
        if kill_after(command, random.uniform(0, takes)):
            counts["kills"] += 1
        for version in exported_versions(models):
            CModel(models / str(version))  # as the server loads it
            read_card(models / str(version))
    versions = exported_versions(models)
    counts["whole versions"] = len(versions)
    status, said = run(command)
    assert status == 0, said[-2000:]
    left = {path.name for path in models.iterdir()} - {str(v) for v in versions}
    assert left == {".lock", str(versions[-1] + 1)}, left


def damage_checkpoints(folder, times, counts):
    """Flips a bit of the newest checkpoint, or cuts it short, and reads it again."""
    workdir = folder / "whole"
    newest = sorted((workdir / "checkpoints").glob("update_*.npz"))[-1]
    content = newest.read_bytes()
    expected, updates = last_arrays(workdir)
    for time_ in range(times):
        damaged = bytearray(content)
        if time_ % 2:
            damaged = damaged[: random.randrange(len(damaged))]
        else:
            place = random.randrange(len(damaged))
            damaged[place] ^= 1 << random.randrange(8)
        newest.write_bytes(damaged)
        counts["damages"] += 1
        arrays, reached = last_arrays(workdir)
        if reached < updates:
            counts["fell back"] += 1
        elif all(np.array_equal(arrays[name], expected[name]) for name in expected):
            counts["harmless"] += 1  # padding, a time stamp
        else:
            counts["lost"] += 1
    newest.write_bytes(content)


def full_disk(folder, counts):
    """A file system of forty kilobytes, then one that cannot be written to."""
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        print("A small file system cannot be mounted here: full disk not tried.")
        return
    try:
        workdir = small / "run"
        status, said = run(train_command(workdir))
        counts["full disks"] += 1
        assert status == 2 and "The disk is full" in said, said[-2000:]
        check_workdir(workdir)
        status, said = run(export_command(folder, small / "models"))
        assert status == 2 and "Cannot write" in said, said[-2000:]
        assert not exported_versions(small / "models")
        counts["refused"] += 2
        remount = ["mount", "-o", "remount,size=20m", str(small)]
        subprocess.run(remount, check=True)
        status, said = run(train_command(workdir))
        assert status == 0, said[-2000:]
        counts["resumed" if same_run(workdir, folder / "whole") else "lost"] += 1
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        status, said = run(train_command(small / "other"))
        counts["read-only"] += 1
        assert status == 2 and "Traceback" not in said, said[-2000:]
        counts["refused"] += 1
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def main(argv):
    """Runs everything; prints and writes one table."""
    del argv
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, fault in (
            ("training", lambda c: kill_training(folder, _KILLS.value, c)),
            ("pool generation", lambda c: kill_generation(folder, _KILLS.value, c)),
            (
                "newest checkpoint",
                lambda c: damage_checkpoints(folder, _FLIPS.value, c),
            ),
            ("encoding", lambda c: kill_encoding(folder, _KILLS.value, c)),
            ("export", lambda c: kill_export(folder, _KILLS.value, c)),
            ("disk", lambda c: full_disk(folder, c)),
        ):
            if _ONLY.value not in (None, what):
                continue
            counts = Counter({"lost": 0})
            fault(counts)
            figures = ", ".join(f"{count} {name}" for name, count in counts.items())
            rows.append(f"| {what} | {figures} |")
            print(rows[-1], flush=True)
    page = (
        "# Faults\n\n"
        "Written by `make faults`. Kills are SIGKILL at random moments from start to "
        "end; after them the same command is run to its end and compared, to the last "
        "bit, with a run that nobody disturbed (weights, epsilon, metrics; images and "
        "manifest; encoded views). Checkpoints had one bit flipped or were cut short. "
        "Exported versions, whenever one is there, are loaded by TensorFlow's C API."
        "\n\n"
        "| what | counts |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    if _OUTPUT.value:
        write_text_atomic(ROOT / _OUTPUT.value, page)
    if any(" 0 lost" not in row for row in rows):
        sys.exit("Something was lost.")


if __name__ == "__main__":
    app.run(main)
