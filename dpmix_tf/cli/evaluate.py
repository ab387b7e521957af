"""Measures a trained model on test or validation examples, with raw and EMA weights.

  python bin/evaluate.py --workdir=runs/digits
  python bin/evaluate.py --workdir=runs/chest --per_person --by=sex,scanner

Figures come with 95 % intervals, for the averaged weights also by class or label, and
with --by for each group of a table's column. They are computed without noise: of
private examples, no guarantee covers them. Of a run with config.report.noise they say
so first.
"""

import json
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path

_WORKDIR = common.define_workdir("The --workdir of a training run.")
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "validation"], "Examples to evaluate on."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data is now; default: where it was for training."
)
_PER_PERSON = flags.DEFINE_bool(
    "per_person", False, "Judge each person by the mean of their images' logits."
)
_BY = flags.DEFINE_list(
    "by", [], "Columns of the table by whose values to report; groups below 10 join."
)

_WARNING = (
    "this run reports its test accuracy with noise (report.noise), because its test "
    "records are private. The figures here have none: that guarantee does not cover "
    "them. Keep them to yourself."
)


def _main(argv: list[str]) -> None:
    common.require(workdir=_WORKDIR.value)
    start_tensorflow()
    from dpmix_tf.training import metrics
    from dpmix_tf.training.evaluation import make_predict, measure, summary
    from dpmix_tf.training.restore import restore_data, restore_network
    from dpmix_tf.training.workdir import read_json

    result: dict[str, object] = {"split": _SPLIT.value}
    networks = {
        weights: restore_network(_WORKDIR.value, weights=weights)
        for weights in ("raw", "ema")
    }
    config = read_json(local_path(_WORKDIR.value, "--workdir") / "config.json")
    reported = config.get("report", {}).get("noise")
    if _SPLIT.value == "test" and reported is not None:
        result["warning"] = _WARNING
        print(f"warning: {_WARNING}", file=sys.stderr)
    _, metadata = networks["ema"]
    dataset = restore_data(_WORKDIR.value, metadata, data_dir=_DATA_DIR.value)
    source = _checked(getattr(dataset, _SPLIT.value))
    groups = {name: source.column(name) for name in _BY.value}
    result |= {"examples": len(source), "updates": metadata["updates"]}
    for weights, (network, _) in networks.items():
        score = measure(make_predict(network), source)
        name = f"{_SPLIT.value}_{score.metric}" + ("_ema" if weights == "ema" else "")
        result[name] = score.overall and round(score.overall, 6)
    names, people = source.class_names, source.people
    result["figures_ema"] = summary(score, names, people)
    if _PER_PERSON.value:
        logits, labels, _ = metrics.per_person(score.logits, score.labels, people)
        joined = score._replace(logits=logits, labels=labels)
        result["per_person_ema"] = summary(joined, names)
    for column, values in groups.items():
        result[f"by_{column}_ema"] = metrics.by_subgroup(
            score.logits,
            score.labels,
            values,
            names,
            score.metric == "auroc",
            people=people,
        )
    print(json.dumps(result, indent=2))


def _checked(source):
    """Returns the examples if there are any that the flags make sense for."""
    if source is None:
        raise DPMixError(
            "The run kept no validation examples (data.validation_fraction = 0). Use "
            "--split=test."
        )
    if _PER_PERSON.value and source.people is None:
        raise DPMixError(
            "--per_person needs to know whose each image is: train on a table with a "
            "column of people (data.person)."
        )
    if _BY.value and not hasattr(source, "column"):
        raise DPMixError("--by needs a table's columns: train with data.name=table.")
    return source


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
