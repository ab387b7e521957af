"""Runs of an experiment, one after the other, in a process of their own.

python -m dpmix_tf.experiments.worker PARENT reads lines from its standard input: the
folder of a run, as JSON. It trains what FOLDER/settings.json says, with all output in
FOLDER/log.txt, and answers with a line of JSON on its standard output: the folder, and
the exit status that a process for this run alone would have. So the start of
TensorFlow, the data set, the calibration of noise and the verification of encoded views
are paid once. A run that fails in any other way than by an error that a user can act on
ends the process, for nobody knows what it leaves behind.

It stops when the process PARENT is gone. It derives a secret seed itself, from the
experiment's secret, so the seed never appears in arguments, environment or settings.
"""

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import keras
from ml_collections import ConfigDict

from dpmix_tf.data import Dataset, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments.processes import LOG, REFUSED, SURVIVED
from dpmix_tf.experiments.records import Cost
from dpmix_tf.experiments.secret import seed_of_run
from dpmix_tf.files import local_path, write_text_atomic
from dpmix_tf.training.software import versions
from dpmix_tf.training.trainer import Trainer
from dpmix_tf.training.workdir import read_json

STOPPED = 130  # exit status of a run that was asked to stop
BROKEN = 1  # and of one that failed by an error that nobody foresaw


def _stop_with_parent(parent: int) -> None:
    """Stops an orphaned run, which would hold its folder for results nobody records."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Trains the runs whose folders are read; see the module."""
    parent = int(sys.argv[1])
    threading.Thread(target=_stop_with_parent, args=(parent,), daemon=True).start()
    answers = os.dup(1)
    for line in sys.stdin:
        folder = local_path(json.loads(line), "The run's folder")
        _write_into(folder / LOG)
        status = _status_of(folder)
        if status in SURVIVED:
            keras.backend.clear_session()  # names of layers begin anew
            gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            os.write(answers, json.dumps([str(folder), status]).encode() + b"\n")
        if status not in SURVIVED:
            sys.exit(status)


def _write_into(log: Path) -> None:
    """Lets standard output and error, TensorFlow's too, go to the end of a file."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _status_of(folder: Path) -> int:
    """Trains a run, and says what went wrong."""
    try:
        train(folder)
    except DPMixError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    except Exception:
        traceback.print_exc()
        return BROKEN
    return 0


def train(folder: Path) -> None:
    """Trains the run in `folder`, and records its cost.

    Raises:
      DPMixError: see Trainer and seed_of_run.
      KeyboardInterrupt: the process was asked to stop.
    """
    config = ConfigDict(read_json(folder / "settings.json"))
    if not (folder / "software.json").exists():
        write_text_atomic(folder / "software.json", json.dumps(versions()))
    trainer = Trainer(
        config,
        folder / "run",
        shared_seed=seed_of_run(folder),
        dataset=_load(json.dumps(config.data.to_dict())),
    )
    before, started = trainer.model.updates, time.perf_counter()
    try:
        trainer.run()
    finally:
        cost = Cost(
            seconds=time.perf_counter() - started,
            updates=trainer.model.updates - before,
        )
        (Cost.read(folder) + cost).write(folder)


@functools.lru_cache(maxsize=1)  # arms seldom differ in their data
def _load(settings: str) -> Dataset:
    return load_dataset(**json.loads(settings))


if __name__ == "__main__":
    main()
