r"""Tunes settings inside the privacy guarantee, and keeps the best run.

python bin/tune.py --config=configs/digits.py --workdir=runs/tuned \
      --try=optimizer.learning_rate=0.25,0.5,1,2 --try=privacy.clip_norm=0.5,1

Each trial draws one combination of the values and trains with it. How many trials there
are is drawn too, with mean --trials, and stays secret: then the best of them costs
little more than one, and config.privacy.epsilon covers all of it (Papernot and Steinke
2022). Trials are scored on validation records, with noise, so that these are protected
as training records are; --public_validation says that they need not be.

The chosen run is --workdir/best, to be exported like any other; all else in --workdir,
and what this prints while it trains, stays secret. If interrupted, run the same command
again.
"""

import ast
import json
import shlex
import sys
from typing import Any

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.privacy.selection import DISTRIBUTIONS

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir(
    "Folder for the trials (secret), and best/, the run that is chosen."
)
_TRY = flags.DEFINE_multi_string(
    "try", [], "FIELD=VALUE,VALUE,... of the config; give it once for each field."
)
_TRIALS = flags.DEFINE_float("trials", 6.0, "Mean number of trials, above 1.")
_DISTRIBUTION = flags.DEFINE_enum(
    "distribution",
    "poisson",
    list(DISTRIBUTIONS),
    "Of the number of trials. Poisson needs the least noise for a few of them, and may "
    "draw none; logarithmic for many.",
)
_PUBLIC = flags.DEFINE_bool(
    "public_validation",
    False,
    "Take the validation records as public: scores then have no noise.",
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    choices = dict(_parse_choice(text) for text in _TRY.value)
    from dpmix_tf.privacy.plan import round_up
    from dpmix_tf.training.tuning import Tuner

    tuned = Tuner(
        _CONFIG.value,
        _WORKDIR.value,
        choices,
        trials=_TRIALS.value,
        distribution=_DISTRIBUTION.value,
        public_validation=_PUBLIC.value,
    ).run()
    spent = json.loads((tuned.folder / "privacy.json").read_text())
    print(f"\n{spent['statement']}\n")
    for name, value in tuned.values.items():
        print(f"chosen             {name} = {value}")
    noise = "" if _PUBLIC.value else ", with noise"
    print(f"validation score   {tuned.score:.4f}{noise}")
    for words, name in (
        ("test accuracy, EMA", "test_accuracy_ema"),
        ("test AUROC, EMA   ", "test_auroc_ema"),
    ):
        if tuned.final.get(name) is not None:
            print(f"{words} {tuned.final[name]:.4f}")
    print(f"epsilon            {round_up(spent['epsilon'])}, with the choice")
    print(f"delta              {spent['delta']:g}")
    workdir = local_path(_WORKDIR.value)
    print(f"\nWritten to {workdir}:")
    print("  best/        the chosen run: evaluate, predict with and export it")
    print("  tuning.json  SECRET: how many trials were drawn   trials/  SECRET")
    print("Next:")
    here = shlex.quote(f"--workdir={tuned.folder}")
    name = workdir.absolute().name.replace(".", "_")
    print(f"  python bin/evaluate.py {here}")
    print(f"  python bin/export.py {here} {shlex.quote(f'--output=models/{name}')}")


def _parse_choice(text: str) -> tuple[str, list[Any]]:
    """`optimizer.learning_rate=0.5,1` -> ("optimizer.learning_rate", [0.5, 1])."""
    name, found, values = text.partition("=")
    if not (found and name and values):
        raise DPMixError(
            f"--try must be FIELD=VALUE,VALUE, such as optimizer.learning_rate=0.5,1; "
            f"received: {text!r}."
        )
    try:
        parsed = ast.literal_eval(f"[{values}]")
    except (ValueError, SyntaxError):  # words, such as fixed,automatic
        parsed = values.split(",")
    return name, parsed


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])


if __name__ == "__main__":
    main()
