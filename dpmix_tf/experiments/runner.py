"""Trains an experiment's runs in processes, shows progress, and records results."""

import contextlib
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments.processes import LOG, REFUSED, SURVIVED, Worker
from dpmix_tf.experiments.records import Failed, Finished, Record
from dpmix_tf.experiments.secret import open_secret, refuse_unpaired, write_pairing
from dpmix_tf.experiments.study import CHOSEN_BY, Run, Study, exact
from dpmix_tf.files import cannot_write, local_path, lock_file, write_text_atomic
from dpmix_tf.training.workdir import events, final_event, read_json

# A process that has trained so many runs is replaced: what leaks cannot pile up.
_RUNS_PER_WORKER = 100


class Runner:
    """Runs what is left of an experiment; finished runs and choices are kept.

    The folder holds `experiment.json`, `secret.json` (from which seeds are derived,
    unless they are public: see experiments/secret.py), a folder per run below `tuning/`
    and `runs/`, and `results.jsonl`, with one line per finished or failed run; its
    contents do not depend on interruptions. Each run resumes where it stopped.

    Args:
      study: the experiment.
      root: the experiment's folder.
      jobs: number of processes at a time; they share the processor's cores.
      runs_per_worker: number of runs that a process trains one after the other; speed
        only, never results.
      shard: (i, n), this machine's part of the pairs (arm, epsilon); 1 <= i <= n. All
        shards but the first need a copy of the first one's secret.json.

    Raises:
      DPMixError: `shard` is out of range, or the folder cannot be created.
    """

    def __init__(
        self,
        study: Study,
        root: str | Path,
        *,
        jobs: int = 1,
        shard: tuple[int, int] = (1, 1),
        runs_per_worker: int = _RUNS_PER_WORKER,
    ):
        if not 1 <= shard[0] <= shard[1]:
            raise DPMixError(f"--shard must be i/n with 1 <= i <= n, not {shard}.")
        self.study, self.jobs, self._runs_per_worker = study, jobs, runs_per_worker
        self.root = local_path(root, "The experiment's folder")
        self._first = shard[0] == 1
        self.groups = list(study.groups())[shard[0] - 1 :: shard[1]]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from error
        self._records: dict[Run, Record] = {}
        self._running: dict[Run, Worker] = {}
        self._idle: list[Worker] = []
        self._seconds: list[float] = []  # for runs that began and ended in this call
        self._began: dict[Run, float] = {}
        self.console = Console(stderr=True)

    def run(self) -> list[Record]:
        """Trains all runs.

        Returns:
          The records of results.jsonl for all groups, including failed runs.

        Raises:
          KeyboardInterrupt: stopped by a signal; raised once the runs have stopped.
          DPMixError: the folder belongs to another experiment, its runs were made with
            other seeds, or results cannot be written.
        """
        with self._alone(), _interrupted_by_sigterm():
            self._secret = open_secret(
                self.root, public=self.study.public_seeds, draw=self._first
            )
            fingerprint = self._secret.fingerprint if self._secret else None
            self.study.claim(self.root, fingerprint)
            self._collect()
            try:
                self._train()
            finally:
                self._stop()
            return self._write_results()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the folder; runs hold the lock too, so none can survive unnoticed."""
        try:
            self._lock = lock_file(self.root / ".lock", wait=False)
        except BlockingIOError:
            self.console.print(
                f"Waiting: {self.root} is in use, or its last runs are still stopping."
            )
            self._lock = lock_file(self.root / ".lock", wait=True)
        with self._lock:
            yield

    def _collect(self) -> None:
        """Reads runs that earlier calls, or shards on other machines, have finished."""
        for arm, epsilon in self.study.all_groups():
            for run in self.study.tuning_runs(arm, epsilon):
                self._look(run)
            for run in self._test_runs(arm, epsilon):
                self._look(run)

    def _look(self, run: Run) -> bool:
        """Whether a run is finished or has failed, in this or an earlier call."""
        if run in self._records:
            return True
        folder = self.root / run.name
        refuse_unpaired(folder, self._secret)
        if final_event(folder / "run") is not None:
            self._records[run] = _finished(self.study, run, folder)
        return run in self._records

    def _test_runs(self, arm: str, epsilon: float) -> list[Run]:
        """The test runs of a group once all its trials have ended; [] before."""
        trials = self.study.tuning_runs(arm, epsilon)
        if not trials:
            return self.study.test_runs(arm, epsilon, self.study.trials[0])
        records = [self._records.get(run) for run in trials]
        if None in records:
            return []
        scores: dict[Any, list[float]] = {}
        for run, record in zip(trials, records, strict=True):
            if isinstance(record, Finished):
                scores.setdefault(run.trial, []).append(record.score)
        if not scores:
            for run in self.study.test_runs(arm, epsilon, ()):
                error = "every tuning trial failed"
                self._records[run] = Failed(run=run, error=error)
            return []
        best = max(scores, key=lambda trial: statistics.mean(scores[trial]))
        return self.study.test_runs(arm, epsilon, best)

    def _waiting(self) -> list[Run]:
        """Runs that can start now: trials first, then test runs in order of seed."""
        runs: list[Run] = []
        for arm, epsilon in self.groups:
            trials = self.study.tuning_runs(arm, epsilon)
            open_trials = [run for run in trials if run not in self._records]
            runs += open_trials or self._test_runs(arm, epsilon)
        runs = [run for run in runs if run not in self._running and not self._look(run)]
        return sorted(runs, key=lambda run: (not run.tuning, run.seed))

    def _train(self) -> None:
        with (
            Live(
                get_renderable=self._screen,
                console=self.console,
                refresh_per_second=1,
                transient=False,
            )
            if self.console.is_terminal
            else contextlib.nullcontext()
        ):
            while True:
                free = self.jobs - len(self._running)
                for run in self._waiting()[:free] if free else []:
                    self._start(run)
                if not self._running:
                    if self._waiting():
                        continue  # those just started failed immediately
                    return
                for run, worker in list(self._running.items()):
                    status = worker.status()
                    if status is not None:
                        self._finish(run, worker, status)
                time.sleep(0.1)

    def _start(self, run: Run) -> None:
        folder = self.root / run.name
        try:
            config = self.study.config_of(run)
        except DPMixError as error:
            self._keep(Failed(run=run, error=str(error)))
            return
        if config.views.visits is not None and config.run.cache_dir is None:
            config.run.cache_dir = str(self.root / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        if self._secret is not None:
            purpose = "tuning" if run.tuning else "test"
            write_pairing(
                self.root, folder, self._secret, purpose=purpose, number=run.seed
            )
        settings = config.to_json(indent=2)
        write_text_atomic(folder / "settings.json", settings + "\n")
        self._running[run] = self._worker_for(folder)
        self._began[run] = time.monotonic()

    def _worker_for(self, folder: Path) -> Worker:
        """Hands a run over to a process that waits for one, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.started < self._runs_per_worker and worker.start(folder):
                return worker
            self._dismiss(worker)
        threads = {}
        if self.jobs > 1:
            share = str(max(1, (os.cpu_count() or 1) // self.jobs))
            threads = dict.fromkeys(
                ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), share
            )
        return Worker(folder, self._lock.fileno(), threads)

    def _dismiss(self, worker: Worker) -> None:
        worker.stop()
        worker.wait()

    def _finish(self, run: Run, worker: Worker, status: int) -> None:
        del self._running[run]
        if status in SURVIVED:
            self._idle.append(worker)
        else:
            self._dismiss(worker)
        folder = self.root / run.name
        if status == 0 and final_event(folder / "run") is not None:
            self._seconds.append(time.monotonic() - self._began[run])
            if run.tuning:  # nothing resumes from a trial
                shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
            self._keep(_finished(self.study, run, folder))
        else:
            self._keep(Failed(run=run, error=_last_words(folder / LOG, status)))

    def _keep(self, record: Record) -> None:
        self._records[record.run] = record
        self._write_results()
        if not self.console.is_terminal:
            done, total = self._progress()
            shown = (
                f"{100 * record.score:.2f} %"
                if isinstance(record, Finished)
                else f"failed: {record.error.splitlines()[-1][:100]}"
            )
            self.console.print(
                f"{done}/{total} {record.run.name}: {shown} (ETA {self._eta()})",
                highlight=False,
                soft_wrap=True,
            )

    def _stop(self) -> None:
        workers = [*self._running.values(), *self._idle]
        for worker in workers:  # those that train write a checkpoint and exit
            worker.stop()
        for worker in workers:
            worker.wait()

    def _write_results(self) -> list[Record]:
        order = {group: index for index, group in enumerate(self.study.all_groups())}
        runs = sorted(
            self._records,
            key=lambda run: (not run.tuning, order[run.arm, run.epsilon], run.name),
        )
        records = [self._records[run] for run in runs]
        text = "".join(record.to_json() + "\n" for record in records)
        write_text_atomic(self.root / "results.jsonl", text)
        return records

    def _progress(self) -> tuple[int, int]:
        """The number of runs that have ended, and of all runs, in this shard."""
        total = len(self.groups) * len(self.study.seeds)
        total += sum(len(self.study.tuning_runs(*group)) for group in self.groups)
        done = sum((run.arm, run.epsilon) in self.groups for run in self._records)
        return done, total

    def _eta(self) -> str:
        done, total = self._progress()
        if not self._seconds:
            return "-"
        seconds = (total - done) * statistics.mean(self._seconds) / self.jobs
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def _screen(self) -> Group:
        """The live display: results so far, and runs in progress."""
        done, total = self._progress()
        table = Table("arm", *(f"epsilon {exact(e)}" for e in self.study.epsilons))
        for arm in self.study.arms:
            table.add_row(arm, *(self._cell(arm, e) for e in self.study.epsilons))
        running = Table("running", "update", "validation", box=None)
        for run in list(self._running):
            seen = _progress_of(self.root / run.name / "run")
            running.add_row(run.name, *seen)
        bar = ProgressBar(total=total, completed=done, width=40)
        return Group(table, running, bar, f"{done}/{total} runs, ETA {self._eta()}")

    def _cell(self, arm: str, epsilon: float) -> str:
        runs = [
            record
            for run, record in self._records.items()
            if (run.arm, run.epsilon, run.tuning) == (arm, epsilon, False)
        ]
        scores = [100 * each.score for each in runs if isinstance(each, Finished)]
        failed = len(runs) - len(scores)
        text = f"{len(scores)}/{len(self.study.seeds)}"
        text += f"  {statistics.mean(scores):.2f} %" if scores else ""
        return text + (f"  {failed} failed" if failed else "")


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(*_):
        raise KeyboardInterrupt("Stopped; run the same command again to resume.")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finished(study: Study, run: Run, folder: Path) -> Finished:
    """Reads the record of a finished run from its folder."""
    workdir = folder / "run"
    *curve, final = events(workdir)
    return Finished(
        run=run,
        final=final,
        curve=tuple(curve),
        views_per_example=study.views_per_example(run.arm),
        spent=read_json(workdir / "privacy.json"),
        config=read_json(workdir / "config.json"),
        software=read_json(folder / "software.json"),
    )


def _last_words(log: Path, status: int) -> str:
    """Says why a run failed: by its own error message if there is one."""
    said = log.read_text(errors="replace").strip()
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; see {log}"
    _, found, error = f"\n{said}".rpartition("\nerror: ")
    if status == REFUSED and found:
        return error.strip()
    return said[-1500:] or f"exit status {status} without output; see {log}"


def _progress_of(workdir: Path) -> tuple[str, str]:
    try:
        seen = events(workdir)
    except DPMixError:
        seen = []
    if not seen:
        return "-", "-"
    accuracy = next((e[CHOSEN_BY] for e in seen[::-1] if CHOSEN_BY in e), None)
    return str(seen[-1]["updates"]), f"{accuracy:.2%}" if accuracy else "-"
