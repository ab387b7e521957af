r"""Compares arms at several epsilons with several seeds; tables, pictures, a report.

  python bin/experiment.py --config=configs/experiments/digits_arms.py \
      --workdir=runs/digits_arms --jobs=2

Each run is a training run in a folder below --workdir. Stopped anywhere, the same
command resumes; when all is done it only writes the report again.

Seeds are numbered 1, 2, ... and are the same in every arm, so that differences are
paired. Behind a number is a secret seed, derived from --workdir/secret.json, which the
first start draws. Runs with the same number share their noise: publish at most one of
them. With --public_seeds the numbers themselves are the seeds: everybody can repeat
such a run, and it has no guarantee.

On several machines, start --shard=1/n, copy its secret.json into the --workdir of the
others, and start those with their --shard=i/n; a folder with another secret is refused.
At the end put the folders together, secret.json too, and run it once more without.
"""

import sys

from absl import flags

from dpmix_tf.cli import common

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir("Folder for all runs, their results and the report.")
_ARMS = flags.DEFINE_list("arms", None, "Only these arms; default all of the config's.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
_SHARD = flags.DEFINE_string(
    "shard",
    "1/1",
    "Part of the runs to do here: i/n. All but the first need its secret.json.",
)
_PUBLIC_SEEDS = flags.DEFINE_bool(
    "public_seeds",
    False,
    "Take the seed numbers themselves as seeds: research, without any guarantee.",
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from dpmix_tf.errors import DPMixError
    from dpmix_tf.experiments import Runner, Study, write_report
    from dpmix_tf.experiments.study import exact

    if "arms" not in _CONFIG.value:
        raise DPMixError(
            "--config describes a single run. Expected an experiment, such as "
            "configs/experiments/digits_arms.py."
        )
    try:
        first, _, last = _SHARD.value.partition("/")
        shard = int(first), int(last)
    except ValueError as error:
        raise DPMixError(f"--shard takes i/n, as 1/4: {_SHARD.value!r}.") from error
    study = Study(_CONFIG.value, arms=_ARMS.value, public_seeds=_PUBLIC_SEEDS.value)
    records = Runner(study, _WORKDIR.value, jobs=_JOBS.value, shard=shard).run()
    failed = [record for record in records if record["status"] == "failed"]
    for record in failed:
        print(
            f"failed: {record['arm']} epsilon={exact(record['epsilon'])} "
            f"seed={record['seed']}: {record['error']}",
            file=sys.stderr,
        )
    if len(failed) < len(records):
        print(f"Written: {write_report(study, records, _WORKDIR.value)}")
    if failed:
        sys.exit(1)


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
