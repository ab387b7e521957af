r"""Compares arms at several epsilons with several seeds, and prints a table.

  python bin/experiment.py --config=configs/digits_diff.py --workdir=runs/arms \
      --arms=dp_sgd,self_aug_16,dp_mix_self,dp_mix_diff --epsilons=1,2,4,8 --seeds=5

Each run is one of bin/train.py in a workdir below --workdir; stopped anywhere, the same
command goes on. Seeds are 1, 2, ... in every arm: good for comparing, not for
releasing.
"""

import sys
from pathlib import Path

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.experiments import comparison

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir("Folder for all runs and the table.")
_ARMS = flags.DEFINE_list("arms", list(comparison.ARMS), "Which arms.")
_EPSILONS = flags.DEFINE_list("epsilons", ["8"], "Which epsilons.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds an arm and epsilon.", lower_bound=1)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from dpmix_tf.errors import DPMixError
    from dpmix_tf.files import write_text_atomic

    try:
        epsilons = [float(epsilon) for epsilon in _EPSILONS.value]
    except ValueError as error:
        raise DPMixError(f"--epsilons takes numbers, as 1,2,4: {error}.") from error
    runs = comparison.grid(_ARMS.value, epsilons, _SEEDS.value)
    root = Path(_WORKDIR.value)
    options = common.config_options()
    finals = comparison.train_all(runs, root, options, _JOBS.value)
    averaged = comparison.table(finals, "test_accuracy_ema")
    last = comparison.table(finals, "test_accuracy")
    text = (
        f"Test accuracy in percent, {_SEEDS.value} seed(s), mean (standard error).\n\n"
        f"Averaged weights (EMA):\n\n{averaged}\n\n"
        f"Last update's weights:\n\n{last}\n"
    )
    write_text_atomic(root / "table.md", text)
    print(f"\n{text}\nWritten to {root / 'table.md'}; the runs are below {root}.")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
