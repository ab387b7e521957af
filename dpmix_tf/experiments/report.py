"""The report of an experiment: report.md, report.html and their pictures."""

import statistics as builtin
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpmix_tf.data import load_dataset
from dpmix_tf.experiments import pictures
from dpmix_tf.experiments.comparison import paired_difference, standard_error
from dpmix_tf.experiments.document import (
    Bullets,
    Document,
    Heading,
    Picture,
    Table,
    Text,
    write_html,
    write_markdown,
)
from dpmix_tf.experiments.study import CHOSEN_BY, Run, Study, exact
from dpmix_tf.files import local_path
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.ledger import CHOSEN
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.privacy.statement import SEED_WARNINGS
from dpmix_tf.training.build import load_pool
from dpmix_tf.training.workdir import read_json
from dpmix_tf.views import make_views
from dpmix_tf.views.preview import draw_views

Record = dict[str, Any]
_AVERAGED, _LAST = "test_accuracy_ema", "test_accuracy"


def write_report(study: Study, records: Sequence[Record], root: str | Path) -> Path:
    """Writes report.md, report.html and the pictures into the experiment's folder.

    Args:
      study: the experiment.
      records: lines of results.jsonl.
      root: the experiment's folder.

    Returns:
      The path of report.html.

    Raises:
      DPMixError: a file cannot be written.
    """
    report = _Report(study, records, local_path(root, "The experiment's folder"))
    document = report.document()
    write_markdown(document, report.root)
    return write_html(document, report.root)


class _Report:
    def __init__(self, study: Study, records: Sequence[Record], root: Path):
        self.study, self.root = study, root
        self.config = study.config
        self.failed = [r for r in records if r["status"] == "failed"]
        done = [r for r in records if r["status"] == "done"]
        self.trials = [r for r in done if r["tuning"]]
        self.runs = [r for r in done if not r["tuning"]]
        self.arms = [a for a in study.known if any(r["arm"] == a for r in self.runs)]
        self.epsilons = [
            e for e in study.epsilons if any(r["epsilon"] == e for r in self.runs)
        ]

    def document(self) -> Document:
        if not self.runs:
            return [
                Heading(self.config.title, 1),
                Text("No run has finished."),
                *self._failures(),
            ]
        return [
            Heading(self.config.title, 1),
            *self._what_was_run(),
            *self._accuracy(),
            *self._differences(),
            *self._published(),
            *self._ablations(),
            *self._curves(),
            *self._cost(),
            *self._classes(),
            *self._views(),
            *self._tuning(),
            *self._failures(),
            *self._versions(),
        ]

    def _of(self, arm: str, epsilon: float) -> list[Record]:
        """The finished runs, sorted by seed."""
        found = [r for r in self.runs if (r["arm"], r["epsilon"]) == (arm, epsilon)]
        return sorted(found, key=lambda record: record["seed"])

    def _microbatch(self, arm: str) -> int | None:
        return self.study.fields(arm)["views.microbatch"]

    def _values(self, arm: str, epsilon: float, metric: str) -> list[float]:
        """Accuracies in percent, by seed."""
        return [100 * record["final"][metric] for record in self._of(arm, epsilon)]

    def _what_was_run(self) -> Document:
        config = self.runs[0]["config"]
        privacy, plan = config["privacy"], self.runs[0]["plan"]
        numbers = sorted({record["seed"] for record in self.runs})
        asked = len(self.study.arms) * len(self.study.epsilons) * len(self.study.seeds)
        text = (
            f"{len(self.runs)} of {asked} planned runs: "
            f"{len(self.arms)} arms at epsilon {', '.join(map(exact, self.epsilons))} "
            f"(delta = {plan['delta']:g}), seeds {numbers[0]} to {numbers[-1]}, the "
            "same in every arm. "
            f"{config['data']['name']}, {plan['num_examples']} training examples; "
            f"network {_words(config['network'])}; {privacy['updates']} updates, "
            f"expected batch size {privacy['expected_batch_size']}, clip norm "
            f"{privacy['clip_norm']:g}. Test accuracy is measured after the last "
            "update, with its weights or with the averaged weights (EMA); it is never "
            "the best value seen during training."
        )
        rows = []
        for arm in self.arms:
            record = next(r for r in self.runs if r["arm"] == arm)
            changes = _words(self.study.changes(arm))
            rows.append([arm, str(record["views_per_example"]), changes])
        table = Table(["arm", "views per example", "settings"], rows)
        return [Text(text), Text(self._what_seeds_are()), table]

    def _what_seeds_are(self) -> str:
        if self.study.public_seeds:
            return (
                "These numbers are the seeds themselves, so that anybody can repeat a "
                f"run. {SEED_WARNINGS[CHOSEN]}"
            )
        return (
            "Behind each number is a secret seed, which the runs with that number "
            "share. A single run has its guarantee; of the runs with the same "
            "number publish at most one: two together have none."
        )

    def _accuracy(self) -> Document:
        lines = {}
        for arm in self.arms:
            epsilons = [e for e in self.epsilons if self._of(arm, e)]
            values = [self._values(arm, e, _AVERAGED) for e in epsilons]
            lines[arm] = (
                epsilons,
                [builtin.mean(v) for v in values],
                [standard_error(v) or 0.0 for v in values],
            )
        picture = pictures.draw_lines(
            lines,
            x="epsilon",
            y="test accuracy, averaged weights (percent)",
            log_x=True,
        )
        return [
            Heading("Accuracy"),
            Picture("accuracy", picture, "Test accuracy against epsilon, by arm"),
            Text("Bars are standard errors over the seeds."),
            Text("With averaged weights, in percent, mean (standard error):"),
            self._accuracy_table(_AVERAGED),
            Text("With the last update's weights:"),
            self._accuracy_table(_LAST),
        ]

    def _accuracy_table(self, metric: str) -> Table:
        rows = [
            [arm, *(_mean(self._values(arm, e, metric)) for e in self.epsilons)]
            for arm in self.arms
        ]
        return Table(["arm", *(f"epsilon {exact(e)}" for e in self.epsilons)], rows)

    def _differences(self) -> Document:
        baseline = self.config.baseline
        sentences = []
        for epsilon in self.epsilons:
            theirs = {r["seed"]: r for r in self._of(baseline, epsilon)}
            for arm in self.arms:
                mine = {r["seed"]: r for r in self._of(arm, epsilon)}
                both = sorted(mine.keys() & theirs.keys())
                if arm == baseline or not both:
                    continue
                found = paired_difference(
                    *([_percent(runs[s]) for s in both] for runs in (mine, theirs))
                )
                sentences.append(
                    f"epsilon {exact(epsilon)}: {found.sentence(arm, baseline)}"
                )
        if not sentences:
            return []
        return [
            Heading(f"Against {baseline}"),
            Text(
                "Differences between runs with the same seed, with averaged weights. "
                "Intervals are uncorrected: about 1 in 20 null comparisons would look "
                "significant. A difference is called significant only where Student's "
                "t agrees, because bootstrap intervals are too narrow for a handful "
                "of pairs."
            ),
            Bullets(sentences),
        ]

    def _published(self) -> Document:
        if not self.config.published:
            return []
        rows = [
            [
                arm,
                exact(epsilon),
                _mean(self._values(arm, float(epsilon), _AVERAGED)) or "not run",
                str(figure),
                source,
            ]
            for arm, epsilon, figure, source in self.config.published
        ]
        header = ["arm", "epsilon", "here", "published", "source"]
        return [Heading("Published numbers"), Table(header, rows)]

    def _ablations(self) -> Document:
        document: Document = []
        for field, arms in self.config.ablations:
            lines = {}
            for epsilon in self.epsilons:
                points = [
                    (self.study.fields(arm)[field], values)
                    for arm in arms
                    if (values := self._values(arm, epsilon, _AVERAGED))
                ]
                points.sort(key=lambda point: point[0])
                lines[f"epsilon {exact(epsilon)}"] = (
                    [place for place, _ in points],
                    [builtin.mean(values) for _, values in points],
                    [standard_error(values) or 0.0 for _, values in points],
                )
            picture = pictures.draw_lines(
                lines, x=field, y="test accuracy, averaged weights (percent)"
            )
            name = "over_" + field.rpartition(".")[2]
            document.append(Picture(name, picture, f"Test accuracy against {field}"))
        return [Heading("Ablations"), *document] if document else []

    def _curves(self) -> Document:
        epsilon = self.epsilons[-1]
        lines = {}
        for arm in self.arms:
            curves = [
                {event["updates"]: event[CHOSEN_BY] for event in record["curve"]}
                for record in self._of(arm, epsilon)
                if record["curve"] and CHOSEN_BY in record["curve"][-1]
            ]
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            if shared:
                means = [100 * builtin.mean(c[u] for c in curves) for u in shared]
                lines[arm] = (shared, means, None)
        if not lines:
            return []
        picture = pictures.draw_lines(
            lines,
            x="updates",
            y="validation accuracy, averaged weights (percent)",
            title=f"epsilon = {exact(epsilon)} at the end of training",
        )
        return [
            Heading("Training"),
            Picture("training", picture, "Validation accuracy during training"),
        ]

    def _cost(self) -> Document:
        per_update: dict[str, float] = {}
        rows = []
        for arm in self.arms:
            costs = []
            for record in self.runs:
                folder = self.root / Run.of(record).name
                if record["arm"] == arm and (folder / "cost.json").exists():
                    costs.append(read_json(folder / "cost.json"))
            updates = sum(cost["updates"] for cost in costs)
            if updates:
                per_update[arm] = sum(cost["seconds"] for cost in costs) / updates
        for arm, seconds in per_update.items():
            record = next(r for r in self.runs if r["arm"] == arm)
            plan, views = record["plan"], record["views_per_example"]
            batch = plan["expected_batch_size"]
            relative = seconds / per_update.get("dp_sgd", float("nan"))
            clipped = batch / (self._microbatch(arm) or 1)
            noise = plan["noise_multiplier"] * plan["sensitivity"] / clipped
            rows.append(
                [
                    arm,
                    f"{seconds * plan['updates']:.0f}",
                    f"{views * batch / seconds:,.0f}".replace(",", ""),
                    f"{relative:.2f}" if relative == relative else "-",
                    f"{noise:.4f}",
                ]
            )
        if not rows:
            return []
        header = [
            "arm",
            "seconds per run",
            "views per second",
            "time relative to dp_sgd",
            f"noise per clipped term, epsilon {exact(self.epsilons[0])}",
        ]
        return [
            Heading("Cost"),
            Text(
                "Times include training and its evaluations, on processors that the "
                "runs shared. Noise is its standard deviation, in clip norms, divided "
                "by the expected number of clipped terms in a batch: the noise that "
                "each term competes with."
            ),
            Table(header, rows),
        ]

    def _classes(self) -> Document:
        if not self.config.class_accuracy:
            return []
        epsilon, key = self.epsilons[-1], f"{_AVERAGED}_by_class"
        rows = {}
        for arm in self.arms:
            found = [record["final"].get(key) for record in self._of(arm, epsilon)]
            by_class = list(zip(*(values for values in found if values), strict=True))
            if by_class:
                rows[arm] = [
                    100 * builtin.mean(v) if None not in v else float("nan")
                    for v in by_class
                ]
        if not rows or len(next(iter(rows.values()))) > 20:
            return []
        classes = self._dataset().class_names
        return [
            Heading("By class"),
            Text(
                f"Test accuracy in percent at epsilon = {exact(epsilon)}, with "
                "averaged weights, mean over the seeds."
            ),
            Picture(
                "classes",
                pictures.draw_classes(rows, classes),
                "Test accuracy by class and arm",
            ),
        ]

    def _dataset(self):
        return load_dataset(**self.config.base.data.to_dict())

    def _views(self) -> Document:
        """Shows one example's views, made by the arm that mixes the most."""
        if not self.config.show_views:
            return []
        arm = max(
            (a for a in self.arms if not self._microbatch(a)),
            key=lambda a: [
                self.study.fields(a)[f"views.{kind}"] for kind in ("synthetic", "mixed")
            ],
            default=None,
        )
        if arm is None:
            return []
        config = self.study.run_config(arm, 1.0, 1)
        dataset = self._dataset()
        maker = make_views(config.views.to_dict(), load_pool(config, dataset))
        images, labels = dataset.train.read([0])
        with tempfile.TemporaryDirectory() as folder:
            path = local_path(folder) / "views.png"
            draw_views(
                maker, images[0], int(labels[0]), dataset.class_names, seed=0, path=path
            )
            png = path.read_bytes()
        return [
            Heading("Views"),
            Picture("views", png, f"The views that {arm} makes of one example"),
        ]

    def _tuning(self) -> Document:
        if not self.trials:
            return []
        count = len(self.study.trials)
        rows = []
        for arm, epsilon in self.study.groups():
            found = self._of(arm, epsilon)
            trials = [
                t for t in self.trials if (t["arm"], t["epsilon"]) == (arm, epsilon)
            ]
            if not found or not trials:
                continue
            plan = found[0]["plan"]
            total = accounting.tuning_epsilon(
                noise_multiplier=plan["noise_multiplier"],
                sampling_probability=plan["sampling_probability"],
                updates=plan["updates"] * self.config.tuning_seeds,
                delta=plan["delta"],
                trials=count,
            )
            tried = ", ".join(
                f"{_words(t['tuned'])}: {100 * t['curve'][-1][CHOSEN_BY]:.2f}"
                for t in trials
            )
            rows.append(
                [
                    arm,
                    exact(epsilon),
                    _words(found[0]["tuned"]),
                    tried,
                    round_up(total),
                ]
            )
        return [
            Heading("Tuning"),
            Text(
                f"Each arm at each epsilon had a budget of {count} trials with "
                f"{self.config.tuning_seeds} seed(s) each. The best trial was chosen "
                "by the validation accuracy of the averaged weights; test images "
                "played no part. Training several times on the same examples costs "
                "privacy, which the epsilons above do not include. The last column is "
                "what the choice would cost, in addition to each run that is "
                "published, if the number of trials were drawn from a geometric "
                f"distribution with mean {count} (Papernot and Steinke 2022), by Renyi "
                "accounting. It protects the training examples, not the validation "
                "examples, which are compared without noise."
            ),
            Table(
                [
                    "arm",
                    "epsilon",
                    "chosen",
                    "validation accuracy (percent)",
                    "epsilon of the choice",
                ],
                rows,
            ),
        ]

    def _failures(self) -> Document:
        if not self.failed:
            return []
        return [
            Heading("Failed runs"),
            Bullets(
                [
                    f"{r['arm']}, epsilon {exact(r['epsilon'])}, seed {r['seed']}: "
                    f"{r['error']}"
                    for r in self.failed
                ]
            ),
        ]

    def _versions(self) -> Document:
        found = {tuple(sorted(r["software"].items(), key=str)) for r in self.runs}
        lines = [
            ", ".join(f"{name} {value}" for name, value in one) for one in sorted(found)
        ]
        return [Heading("Made with"), Bullets(lines)]


def _percent(record: Record) -> float:
    return 100 * record["final"][_AVERAGED]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    error = standard_error(values)
    return f"{builtin.mean(values):.2f}" + (f" ({error:.2f})" if error else "")


def _words(fields: dict[str, Any]) -> str:
    return (
        ", ".join(
            value if name == "name" else f"{name.rpartition('.')[2]} = {value}"
            for name, value in fields.items()
            if value is not None
        )
        or "-"
    )
