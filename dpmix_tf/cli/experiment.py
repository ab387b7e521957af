r"""Compares arms at several epsilons, with several seeds, and writes a report.

  python bin/experiment.py --config=configs/experiments/digits_arms.py \
      --workdir=runs/digits_arms --jobs=2

Each run is a training run in a folder below --workdir. If interrupted, run the same
command again to resume; once all runs are done, it only rewrites the report.

Seeds are numbered 1, 2, ... and are the same in every arm, so that differences are
paired. Behind each number is a secret seed, derived from --workdir/secret.json, which
is drawn at the first start. Runs with the same number share their noise: publish at
most one of them. With --public_seeds the numbers themselves are the seeds: anybody can
repeat such a run, and it has no guarantee.

On several machines, start --shard=1/n first, copy its secret.json into the --workdir of
the others, and start each of them with its own --shard=i/n; a folder with a different
secret is refused. At the end, merge the folders, including secret.json, and run the
command once more without --shard.
"""

import sys

from absl import flags

from dpmix_tf.cli import common

_CONFIG = common.define_config()
_WORKDIR = common.define_workdir("Folder for all runs, their results and the report.")
_ARMS = flags.DEFINE_list("arms", None, "Run only these arms of the config.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at a time.", lower_bound=1)
_SHARD = flags.DEFINE_string(
    "shard",
    "1/1",
    "Part of the runs to do here: i/n. Other shards need the secret.json of the first.",
)
_PUBLIC_SEEDS = flags.DEFINE_bool(
    "public_seeds",
    False,
    "Use the seed numbers themselves as seeds: for research, without any guarantee.",
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from dpmix_tf.errors import DPMixError
    from dpmix_tf.experiments import Runner, Study, write_report
    from dpmix_tf.experiments.records import Failed
    from dpmix_tf.experiments.study import exact

    if "arms" not in _CONFIG.value:
        raise DPMixError(
            "--config describes a single run. Expected an experiment, such as "
            "configs/experiments/digits_arms.py."
        )
    shard = common.parse_shard(_SHARD.value)
    study = Study(_CONFIG.value, arms=_ARMS.value, public_seeds=_PUBLIC_SEEDS.value)
    records = Runner(study, _WORKDIR.value, jobs=_JOBS.value, shard=shard).run()
    failed = [record for record in records if isinstance(record, Failed)]
    for record in failed:
        print(
            f"failed: {record.run.arm} epsilon={exact(record.run.epsilon)} "
            f"seed={record.run.seed}: {record.error}",
            file=sys.stderr,
        )
    if len(failed) < len(records):
        print(f"Written: {write_report(study, records, _WORKDIR.value)}")
    if failed:
        sys.exit(1)


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
