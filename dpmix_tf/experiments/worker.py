"""One run of an experiment, in its own process.

python -m dpmix_tf.experiments.worker FOLDER PARENT reads FOLDER/settings.json, and
stops when the process PARENT is gone. It derives a secret seed itself, from the
experiment's secret, so the seed never appears in arguments, environment or settings.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ml_collections import ConfigDict

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments.records import Cost
from dpmix_tf.experiments.secret import seed_of_run
from dpmix_tf.files import local_path, write_text_atomic
from dpmix_tf.training.software import versions
from dpmix_tf.training.trainer import Trainer
from dpmix_tf.training.workdir import read_json

STOPPED = 130  # exit status of a run that was asked to stop


def _stop_with_parent(parent: int) -> None:
    """Stops an orphaned run, which would hold its folder for results nobody records."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Trains the run; prints errors that a user can act on and exits with status 2."""
    folder = local_path(sys.argv[1])
    parent = int(sys.argv[2])
    threading.Thread(target=_stop_with_parent, args=(parent,), daemon=True).start()
    try:
        train(folder)
    except DPMixError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def train(folder: Path) -> None:
    """Trains the run in `folder`, and records its cost.

    Raises:
      DPMixError: see Trainer and seed_of_run.
      KeyboardInterrupt: the process was asked to stop.
    """
    config = ConfigDict(read_json(folder / "settings.json"))
    if not (folder / "software.json").exists():
        write_text_atomic(folder / "software.json", json.dumps(versions()))
    trainer = Trainer(config, folder / "run", shared_seed=seed_of_run(folder))
    before, started = trainer.model.updates, time.perf_counter()
    try:
        trainer.run()
    finally:
        cost = Cost(
            seconds=time.perf_counter() - started,
            updates=trainer.model.updates - before,
        )
        (Cost.read(folder) + cost).write(folder)


if __name__ == "__main__":
    main()
