r"""Trains a private image classifier; rerun with the same --workdir, it resumes.

python bin/train.py --config=configs/digits.py --workdir=runs/digits
python bin/train.py --config=configs/digits.py --config.privacy.epsilon=2 \
      --workdir=runs/digits_epsilon2

On several machines, run the same command on each, with TF_CONFIG as TensorFlow
documents it; the first worker writes --workdir:

  TF_CONFIG='{"cluster": {"worker": ["host1:12345", "host2:12345"]},
      "task": {"type": "worker", "index": 0}}' \
  python bin/train.py --config=configs/cifar10_wrn16_4.py --workdir=runs/wrn \
      --strategy=multi_worker
"""

import json
import shlex
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.files import local_path

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir(
    "Folder for checkpoints and config.json (secret: they hold the seed), "
    "privacy.json, metrics.jsonl and TensorBoard events. Created if missing."
)

_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored", "multi_worker"],
    "A single process, all GPUs of this machine, or the machines that TF_CONFIG lists.",
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from dpmix_tf.privacy.plan import round_up
    from dpmix_tf.training import Trainer, make_strategy

    strategy = make_strategy(_STRATEGY.value)
    trainer = Trainer(_CONFIG.value, _WORKDIR.value, strategy)
    result = trainer.run()
    if not trainer.is_chief:
        print("Finished; the first worker has written the results.")
        return
    workdir = local_path(_WORKDIR.value)
    spent = json.loads((workdir / "privacy.json").read_text())
    print(f"\n{spent['statement']}\n")
    if spent["epsilon"] is not None:
        secret = "" if not spent["seed_chosen_by_user"] else ", were the seed secret"
        print(f"epsilon            {round_up(spent['epsilon'])}{secret}")
        print(f"delta              {spent['delta']:g}")
    for words, name in (
        ("test accuracy     ", "test_accuracy"),
        ("test accuracy, EMA", "test_accuracy_ema"),
        ("accuracy with noise", "test_accuracy_noised"),
        ("test AUROC        ", "test_auroc"),
        ("test AUROC, EMA   ", "test_auroc_ema"),
    ):
        # Missing without a test set or with run.test = False; or of the other task.
        if result.get(name) is not None:
            print(f"{words} {result[name]:.4f}")
    if (release := spent.get("test_release")) and release["epsilon"] is not None:
        print(
            f"This costs each of the {release['records']:,} test records epsilon = "
            f"{round_up(release['epsilon'])} at delta = {release['delta']:g}, apart "
            "from the above."
        )
    print(f"\nWritten to {workdir}:")
    print("  privacy.json   what was spent      metrics.jsonl  accuracy by update")
    print("  checkpoints/   SECRET: the seed    tensorboard/   the same as curves")
    print("  config.json    SECRET where it sets the seed")
    print("Next:")
    here = shlex.quote(f"--workdir={workdir}")
    output = shlex.quote(f"--output=models/{workdir.absolute().name.replace('.', '_')}")
    print(f"  python bin/evaluate.py {here}")
    print(f"  python bin/predict.py {here} image.png ...")
    research = " --research" if spent["seed_chosen_by_user"] else ""
    print(f"  python bin/export.py {here} {output}{research}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])


if __name__ == "__main__":
    main()
