r"""Trains a private image classifier; run again on the same --workdir, it resumes.

python bin/train.py --config=configs/digits.py --workdir=runs/digits
python bin/train.py --config=configs/digits.py --config.privacy.epsilon=2 \
      --workdir=runs/digits_epsilon2
"""

import json
import sys
from pathlib import Path

from dpmix_tf.cli import common

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir(
    "Folder for checkpoints and config.json (secret: they hold the seed), "
    "privacy.json, metrics.jsonl and TensorBoard events. Made if missing."
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from dpmix_tf.privacy.plan import round_up
    from dpmix_tf.training import Trainer

    trainer = Trainer(_CONFIG.value, _WORKDIR.value)
    result = trainer.run()
    workdir = Path(_WORKDIR.value)
    spent = json.loads((workdir / "privacy.json").read_text())
    print(f"\n{spent['statement']}\n")
    if spent["epsilon"] is not None:
        print(f"epsilon            {round_up(spent['epsilon'])}")
        print(f"delta              {spent['delta']:g}")
    print(f"test accuracy      {result['test_accuracy']:.4f}")
    print(f"test accuracy, EMA {result['test_accuracy_ema']:.4f}")
    print(f"\nWritten to {workdir}:")
    print("  privacy.json   what was spent      metrics.jsonl  accuracy by update")
    print("  checkpoints/   SECRET: the seed    tensorboard/   the same as curves")
    print("  config.json    SECRET where it sets the seed")
    print("Next:")
    print(f"  python bin/evaluate.py --workdir={workdir}")
    print(f"  python bin/predict.py --workdir={workdir} image.png ...")
    print("Export a SavedModel of the averaged weights (images in [0, 1] -> logits):")
    print(
        '  python -c "from dpmix_tf.training import restore_network; '
        f"restore_network('{workdir}')[0].export('models/{workdir.name}/1')\""
    )


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])


if __name__ == "__main__":
    main()
