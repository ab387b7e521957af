"""Trains several arms at several epsilons with several seeds, and tabulates them."""

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_text_atomic
from dpmix_tf.training.workdir import final_event

# What each arm changes in `config.views`; base augmentation and the rest stay the
# config's.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "dp_sgd": {"base": 1, "mixed": 0, "synthetic": 0, "augment": "none"},
    "self_aug_16": {"base": 16, "mixed": 0, "synthetic": 0},
    "self_aug_34": {"base": 34, "mixed": 0, "synthetic": 0},
    "dp_mix_self": {"base": 16, "mixed": 18, "synthetic": 0},
    "dp_mix_diff": {"base": 16, "mixed": 18, "synthetic": 2},
    **{
        mixer: {"base": 16, "mixed": 18, "synthetic": 0, "mixer": mixer}
        for mixer in ("cutmix", "resizemix", "fmix", "maskmix")
    },
}


class Run(NamedTuple):
    """One training run of a comparison."""

    arm: str
    epsilon: float
    seed: int

    def workdir(self, root: Path) -> Path:
        """Where the run lives."""
        return root / self.arm / f"epsilon_{self.epsilon:g}" / f"seed_{self.seed}"


def grid(arms: Sequence[str], epsilons: Sequence[float], seeds: int) -> list[Run]:
    """All runs, seeds outermost, so that an interrupted comparison is balanced.

    Raises:
      DPMixError: an unknown arm, or nothing to do.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms or not epsilons or seeds < 1:
        raise DPMixError(
            f"arms must be some of {', '.join(ARMS)}, with at least one epsilon and "
            f"one seed; received: arms={list(arms)}, epsilons={list(epsilons)}, "
            f"seeds={seeds}."
        )
    return [
        Run(arm, epsilon, seed)
        for seed, epsilon, arm in itertools.product(range(1, seeds + 1), epsilons, arms)
    ]


def train_all(
    runs: Sequence[Run], root: Path, options: Sequence[str], jobs: int
) -> dict[Run, dict[str, Any]]:
    """Trains each run in a process of its own; finished ones are not repeated.

    Args:
      runs: from `grid`.
      root: folder of the comparison; each run's workdir lies below it.
      options: command-line options of all runs: --config and its fields.
      jobs: processes at a time; they share the processor's cores.

    Returns:
      The final event of each run.

    Raises:
      DPMixError: the folder holds runs of other options; or a run failed: says which,
        and what it said last.
    """
    _refuse_other_options(root, options)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = dict(os.environ)
    if jobs > 1:
        environment |= {
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads,
        }

    running: list[subprocess.Popen] = []

    def train(run: Run) -> dict[str, Any]:
        workdir = run.workdir(root)
        final = final_event(workdir)
        if final is not None:
            return final
        views = [
            f"--config.views.{key}={value}" for key, value in ARMS[run.arm].items()
        ]
        command = [
            sys.executable,
            "-m",
            "dpmix_tf.cli.train",
            *options,
            *views,
            f"--config.privacy.epsilon={run.epsilon}",
            f"--config.seed={run.seed}",
            f"--workdir={workdir}",
        ]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            running.append(process)
            _, said = process.communicate()
        final = final_event(workdir)
        if process.returncode or final is None:
            raise DPMixError(f"The run in {workdir} failed:\n{said[-1500:]}")
        return final

    finals: dict[Run, dict[str, Any]] = {}
    with (
        futures.ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(runs), unit="run", smoothing=0) as bar,
    ):
        pending = {pool.submit(train, run): run for run in runs}
        try:
            for done in futures.as_completed(pending):
                run = pending[done]
                finals[run] = done.result()
                bar.set_postfix_str(
                    f"{run.arm} epsilon={run.epsilon:g}: "
                    f"{finals[run]['test_accuracy_ema']:.3f}"
                )
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            for process in running:  # they write a checkpoint and go
                process.terminate()
            raise
    return finals


def _refuse_other_options(root: Path, options: Sequence[str]) -> None:
    """Finished runs are taken as they are, so all must come from one configuration."""
    path = root / "options.json"
    if path.exists():
        there = json.loads(path.read_text())
        if there != list(options):
            raise DPMixError(
                f"{root} holds runs made with\n  {' '.join(there)}\nand not with\n"
                f"  {' '.join(options)}\nUse another --workdir, or the same options."
            )
    else:
        root.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps(list(options)))


def table(finals: Mapping[Run, Mapping[str, Any]], metric: str) -> str:
    """A Markdown table: arms by epsilons, percent, mean and (standard error).

    Args:
      finals: from `train_all`.
      metric: "test_accuracy" or "test_accuracy_ema".
    """
    arms = list(dict.fromkeys(run.arm for run in finals))
    arms.sort(key=list(ARMS).index)
    epsilons = sorted({run.epsilon for run in finals})
    lines = [
        "| arm | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in epsilons) + " |",
        "|---" * (1 + len(epsilons)) + "|",
    ]
    for arm in arms:
        cells = []
        for epsilon in epsilons:
            values = [
                100 * final[metric]
                for run, final in finals.items()
                if (run.arm, run.epsilon) == (arm, epsilon)
            ]
            cell = f"{statistics.mean(values):.2f}"
            if len(values) > 1:
                error = statistics.stdev(values) / len(values) ** 0.5
                cell += f" ({error:.2f})"
            cells.append(cell)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
