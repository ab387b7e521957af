"""Attacks a training run with canaries and reports a lower bound on epsilon.

python bin/audit.py --config=configs/digits.py --workdir=runs/audit

Trains once with canaries, each of which a fair coin includes or leaves out, and
measures how well the training reveals which ones were included. With --runs, trains
many times with or without one canary. With --trained, tries to tell a finished run's
training examples from its test examples.
"""

import json
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_text_atomic

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir(
    "Folder for audit.json and roc.png. Created if missing."
)
_IMAGES = flags.DEFINE_integer(
    "image_canaries", 100, "Mislabelled images, and images of noise, to train on."
)
_GRADIENTS = flags.DEFINE_integer(
    "gradient_canaries", 5_000, "Records whose gradient is nonzero at a single weight."
)
_RUNS = flags.DEFINE_integer(
    "runs", None, "Train this many times, with or without one canary of each kind."
)
_CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Of all bounds together.")
_SEED = flags.DEFINE_integer(
    "seed", None, "Seed that repeats an audit; default: a new one."
)
_TRAINED = flags.DEFINE_string("trained", None, "--workdir of a finished training run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data of --trained is now.")


def _main(argv: list[str]) -> None:
    common.require(workdir=_WORKDIR.value)
    if _CONFIG.value is None and _TRAINED.value is None:
        raise DPMixError("--config or --trained is missing. See --help.")
    start_tensorflow()
    from dpmix_tf import auditing
    from dpmix_tf.privacy.plan import round_down

    workdir = local_path(_WORKDIR.value, "--workdir")
    try:  # before anything is trained
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DPMixError(f"Cannot create the workdir {workdir}: {error}.") from error
    result, rocs, claimed = {}, {}, None
    if _CONFIG.value is not None:
        shared = {"confidence": _CONFIDENCE.value, "seed": _SEED.value}
        if _RUNS.value is not None:
            audit = auditing.audit_many_runs(_CONFIG.value, runs=_RUNS.value, **shared)
        else:
            audit = auditing.audit_one_run(
                _CONFIG.value,
                image_canaries=_IMAGES.value,
                gradient_canaries=_GRADIENTS.value,
                **shared,
            )
        result["training"] = audit.to_dict()
        rocs, claimed = audit.rocs, audit.claimed
        for name, bounds in audit.bounds.items():
            for bound in bounds:
                least = round_down(bound.epsilon)
                print(
                    f"{name}, {bound.method} bound: epsilon >= {least} "
                    f"({bound.evidence})"
                )
        print(f"\n{audit.verdict()}\n")
    if _TRAINED.value is not None:
        curves = auditing.attack_membership(
            _TRAINED.value, data_dir=_DATA_DIR.value, confidence=_CONFIDENCE.value
        )
        result["membership"] = {}
        for name, curve in curves.items():
            result["membership"][name] = auditing.describe_roc(curve)
            rocs[f"membership, {name}"] = curve
            low, high = curve.auc_interval
            print(f"membership by {name}: AUC {curve.auc:.3f} ({low:.3f}-{high:.3f})")
            for rate, (value, low, high) in curve.at.items():
                print(
                    f"  true positives at {rate:.1%} false positives: {value:.2%} "
                    f"({low:.2%}-{high:.2%})"
                )
    write_text_atomic(workdir / "audit.json", json.dumps(result, indent=2) + "\n")
    auditing.draw_rocs(rocs, workdir / "roc.png", claimed=claimed)
    print(f"Written: {workdir / 'audit.json'}, {workdir / 'roc.png'}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
