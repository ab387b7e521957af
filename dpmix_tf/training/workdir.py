"""The folder of one run: its lock, its configuration, what it spent, its metrics."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, lock_file, write_atomic, write_text_atomic
from dpmix_tf.models import without_place
from dpmix_tf.privacy import Ledger
from dpmix_tf.privacy.ledger import CHOSEN
from dpmix_tf.privacy.plan import finite_or_none
from dpmix_tf.privacy.statement import SEED_WARNINGS, seed_origin, state_guarantee
from dpmix_tf.training.dp_model import DPMixModel


class WorkDir:
    """A work directory, locked by one process at a time from the moment it is opened.

    Args:
      path: made if missing.
      config: the run's; must match the configuration of a run already in the folder.

    Raises:
      DPMixError: another process has locked the folder, it cannot be written to, or it
        contains a run with another configuration.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = local_path(path, "The workdir")
        self.checkpoints = self.path / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.checkpoints.chmod(0o700)
            # Held until `close`, or until the process ends in any way.
            self._lock = lock_file(self.path / ".lock", wait=False)
        except BlockingIOError as error:
            raise DPMixError(
                f"Another process is training in {self.path}, or an earlier Trainer "
                "in this process holds it. Wait for it, or use another --workdir."
            ) from error
        except OSError as error:
            raise DPMixError(
                f"Cannot write to the workdir {self.path}: {error.strerror}. Choose "
                "another with --workdir."
            ) from error
        self._config = json.loads(config.to_json())
        try:
            self._refuse_another_config()
        except DPMixError:
            self.close()
            raise

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def refuse_if_closed(self) -> None:
        """Raises DPMixError if the lock was released."""
        if self._lock.closed:
            raise DPMixError(
                f"This Trainer no longer holds {self.path}. Create a new Trainer to "
                "continue."
            )

    def _refuse_another_config(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            return
        lines = differences(read_json(path), self._config)
        if lines:
            raise DPMixError(
                f"{self.path} holds a run with another configuration:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nUse another --workdir, or the same settings to resume."
            )

    def write_config(self) -> None:
        """Writes config.json; call it once all its settings have proved usable."""
        # Private, because it contains the seed if the user chose one.
        text = json.dumps(self._config, indent=2) + "\n"
        write_atomic(
            self.path / "config.json",
            lambda file: file.write(text.encode()),
            private=True,
        )

    def write_privacy(
        self, model: DPMixModel, test_release: dict[str, Any] | None = None
    ) -> None:
        """Writes privacy.json; call it before writing anything else about the updates.

        After a crash the run repeats updates it had already made, with the same draws.
        Until it has caught up, the spending recorded earlier stands.

        Args:
          model: what has spent.
          test_release: what a release cost the test records, see training.report;
            default: what was recorded of one earlier.
        """
        plan, path = model.plan, self.path / "privacy.json"
        if test_release is None and path.exists():
            test_release = read_json(path).get("test_release")
        ledger = model.ledger.joined(recorded_ledger(self.path))
        origin = seed_origin(ledger)
        spent = {
            "warning": SEED_WARNINGS[origin],
            "epsilon": finite_or_none(ledger.epsilon(plan.delta, plan.accountant)),
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "clip_norm": plan.clip_norm,
            "clipping": plan.clipping,
            "gamma": plan.gamma,
            "sensitivity": plan.sensitivity,
            "sampling_probability": plan.sampling_probability,
            "record": plan.record,
            "num_examples": plan.num_examples,
            "expected_batch_size": plan.expected_batch_size,
            "updates": ledger.updates(plan),
            "planned_updates": plan.updates,
            "accountant": plan.accountant,
            "trials": plan.trials,
            "trials_distribution": plan.trials_distribution,
            "score_noise": plan.score_noise,
            "seed_origin": origin,
            "seed_chosen_by_user": origin == CHOSEN,
            "ledger": ledger.to_list(),
            "test_release": test_release,
            "statement": state_guarantee(ledger, plan),
        }
        write_text_atomic(path, json.dumps(spent, indent=2) + "\n")


class Metrics:
    """Writes metrics.jsonl and TensorBoard's files.

    They hold the accuracy on validation and test examples, which is computed without
    noise (on test examples, unless report.noise is set) and not covered by the
    guarantee. They hold nothing computed from training examples without noise, unless
    run.private_metrics asks for it.
    """

    def __init__(self, workdir: Path, keep_until: int):
        self._path = workdir / "metrics.jsonl"
        self._tensorboard = workdir / "tensorboard"
        self._writer: Any = None  # made when it is first written to
        # A resumed run rewrites the events after its checkpoint.
        self._events = [e for e in events(workdir) if e["updates"] <= keep_until]
        self.final = _final(self._events)

    @property
    def reached(self) -> int:
        """The update of the last event; 0 if there is none."""
        return self._events[-1]["updates"] if self._events else 0

    def write(
        self, kind: str, model: DPMixModel, values: dict[str, Any]
    ) -> dict[str, Any]:
        """Appends one event and returns it."""
        epsilon = model.epsilon
        event = {
            "event": kind,
            "updates": model.updates,
            "epsilon": finite_or_none(epsilon),
            "delta": model.plan.delta,
            **{
                name: finite_or_none(value) if isinstance(value, float) else value
                for name, value in values.items()
            },
        }
        self._events.append(event)
        text = "".join(json.dumps(one) + "\n" for one in self._events)
        write_text_atomic(self._path, text)
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._tensorboard))
        with self._writer.as_default(step=model.updates):
            tf.summary.scalar("privacy/epsilon", epsilon)
            for name, value in values.items():
                if not isinstance(value, float):
                    continue
                part, _, rest = name.partition("_")
                tf.summary.scalar(f"{part}/{rest}", value)
        self._writer.flush()
        return event


_DAMAGED = "It was changed or damaged: restore it, or use another --workdir."


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      DPMixError: the file cannot be read or does not hold one.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DPMixError(f"{path} cannot be read: {error}. {_DAMAGED}") from error
    if not isinstance(value, dict):
        raise DPMixError(f"{path} is not a JSON object. {_DAMAGED}")
    return value


def spent_updates(workdir: Path) -> int:
    """Returns the updates recorded in a run's privacy.json; 0 if there is no file.

    Raises:
      DPMixError: the file is damaged.
    """
    path = workdir / "privacy.json"
    if not path.exists():
        return 0
    updates = read_json(path).get("updates")
    if type(updates) is not int or updates < 0:
        raise DPMixError(
            f"{path} does not say how many updates are spent: updates = "
            f"{updates!r}. {_DAMAGED}"
        )
    return updates


def recorded_ledger(workdir: Path) -> Ledger:
    """Returns the ledger in a run's privacy.json; an empty one if there is no file.

    Raises:
      DPMixError: the file is damaged.
    """
    path = workdir / "privacy.json"
    if not path.exists():
        return Ledger()
    return Ledger.from_list(read_json(path).get("ledger", None), str(path))


def final_event(workdir: Path) -> dict[str, Any] | None:
    """Returns a finished run's last event in metrics.jsonl; None if not finished.

    Raises:
      DPMixError: the file is damaged.
    """
    return _final(events(workdir))


def events(workdir: Path) -> list[dict[str, Any]]:
    """Returns all events of metrics.jsonl so far; none if there is no such file.

    Raises:
      DPMixError: the file is damaged.
    """
    path = workdir / "metrics.jsonl"
    return _read_events(path) if path.exists() else []


def _final(written: list[dict[str, Any]]) -> dict[str, Any] | None:
    last = written[-1] if written else {}
    return last if last.get("event") == "final" else None


def _read_events(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if not isinstance(event, dict) or type(event.get("updates")) is not int:
                raise ValueError(f"a line is not an event: {line[:60]!r}")
            found.append(event)
    except (OSError, ValueError, RecursionError) as error:
        raise DPMixError(f"{path} cannot be read: {error}. {_DAMAGED}") from error
    return found


def differences(theirs: dict, mine: dict, prefix: str = "") -> list[str]:
    """Returns one line per difference that matters between two configurations.

    `run` and `card` may differ, and so may the locations of data, pool and public
    weights.
    """
    lines = []
    for key in sorted(theirs.keys() | mine.keys()):
        name = prefix + key
        if name in ("run", "card", "data.data_dir", "data.table", "pool"):
            continue
        old, new = theirs.get(key), mine.get(key)
        if old is None and isinstance(new, dict):
            old = {}  # from before there were such settings
        if isinstance(old, dict) and isinstance(new, dict):
            if name == "network":
                old, new = without_place(old), without_place(new)
            lines += differences(old, new, name + ".")
        elif old != new and name == "seed":
            lines.append("seed: a different one there (it is secret and not shown)")
        elif old != new:
            lines.append(f"{name}: {old!r} there, {new!r} here")
    return lines
