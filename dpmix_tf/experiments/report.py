"""The report of an experiment: report.md, report.html, figures.json and pictures."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dpmix_tf.data import load_dataset
from dpmix_tf.experiments import pictures
from dpmix_tf.experiments.comparison import paired_difference, standard_error
from dpmix_tf.experiments.document import (
    Bullets,
    Document,
    Heading,
    Picture,
    Text,
    write_html,
    write_markdown,
)
from dpmix_tf.experiments.records import Record, Results
from dpmix_tf.experiments.study import Study, exact
from dpmix_tf.experiments.tables import (
    accuracy_table,
    arms_table,
    clipped_table,
    cost_table,
    figures,
    in_words,
    published_table,
    tuning_table,
)
from dpmix_tf.files import local_path, write_text_atomic
from dpmix_tf.privacy.ledger import CHOSEN
from dpmix_tf.privacy.statement import PLURAL, SEED_WARNINGS
from dpmix_tf.training.build import load_pool
from dpmix_tf.views import make_views
from dpmix_tf.views.preview import draw_views


def write_report(study: Study, records: Sequence[Record], root: str | Path) -> Path:
    """Writes report.md, report.html, figures.json and pictures into the folder.

    figures.json has the accuracies of single runs, for whoever computes with them.

    Args:
      study: the experiment.
      records: of results.jsonl.
      root: the experiment's folder.

    Returns:
      The path of report.html.

    Raises:
      DPMixError: a file cannot be written.
    """
    report = _Report(study, records, local_path(root, "The experiment's folder"))
    document = report.document()
    write_markdown(document, report.root)
    text = json.dumps(figures(report.results), indent=1) + "\n"
    write_text_atomic(report.root / "figures.json", text)
    return write_html(document, report.root)


class _Report:
    def __init__(self, study: Study, records: Sequence[Record], root: Path):
        self.study, self.config, self.root = study, study.config, root
        self.results = Results(study, records)
        self.arms, self.epsilons = self.results.arms, self.results.epsilons

    def document(self) -> Document:
        if not self.results.runs:
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
            *self._clipping(),
            *self._classes(),
            *self._views(),
            *self._tuning(),
            *self._failures(),
            *self._versions(),
        ]

    def _what_was_run(self) -> Document:
        runs = self.results.runs
        config, plan = runs[0].config, runs[0].plan
        numbers = sorted({each.run.seed for each in runs})
        asked = len(self.study.arms) * len(self.study.epsilons) * len(self.study.seeds)
        text = (
            f"{len(runs)} of {asked} planned runs: "
            f"{len(self.arms)} arms at epsilon {', '.join(map(exact, self.epsilons))} "
            f"(delta = {plan.delta:g}), seeds {numbers[0]} to {numbers[-1]}, the "
            "same in every arm. "
            f"{config['data']['name']}, {plan.num_examples} training "
            f"{PLURAL[plan.record]}; "
            f"network {in_words(config['network'])}; {plan.updates} updates, "
            f"expected batch size {plan.expected_batch_size}, {self._how_clipped()}. "
            "Test accuracy is measured after the last "
            "update, with its weights or with the averaged weights (EMA); it is never "
            "the best value seen during training."
        )
        return [Text(text), Text(self._what_seeds_are()), arms_table(self.results)]

    def _how_clipped(self) -> str:
        plans = [each.plan for each in self.results.runs]
        norms = ", ".join(f"{norm:g}" for norm in sorted({p.clip_norm for p in plans}))
        automatic = all(plan.clipping == "automatic" for plan in plans)
        return ("automatic clipping, " if automatic else "") + f"clip norm {norms}"

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
            epsilons = [e for e in self.epsilons if self.results.of(arm, e)]
            values = [self.results.percents(arm, e) for e in epsilons]
            lines[arm] = (
                epsilons,
                [statistics.mean(v) for v in values],
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
            accuracy_table(self.results, averaged=True),
            Text("With the last update's weights:"),
            accuracy_table(self.results, averaged=False),
        ]

    def _differences(self) -> Document:
        baseline = self.config.baseline
        sentences = []
        for epsilon in self.epsilons:
            theirs = self._by_seed(baseline, epsilon)
            for arm in self.arms:
                mine = self._by_seed(arm, epsilon)
                both = sorted(mine.keys() & theirs.keys())
                if arm == baseline or not both:
                    continue
                found = paired_difference(
                    [mine[seed] for seed in both], [theirs[seed] for seed in both]
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

    def _by_seed(self, arm: str, epsilon: float) -> dict[int, float]:
        found = self.results.of(arm, epsilon)
        return {each.run.seed: 100 * each.accuracy for each in found}

    def _published(self) -> Document:
        if not self.config.published:
            return []
        return [Heading("Published numbers"), published_table(self.results)]

    def _ablations(self) -> Document:
        document: Document = []
        for field, arms in self.config.ablations:
            lines = {}
            for epsilon in self.epsilons:
                points = [
                    (self.study.fields(arm)[field], values)
                    for arm in arms
                    if (values := self.results.percents(arm, epsilon))
                ]
                points.sort(key=lambda point: point[0])
                lines[f"epsilon {exact(epsilon)}"] = (
                    [place for place, _ in points],
                    [statistics.mean(values) for _, values in points],
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
                record.validation
                for record in self.results.of(arm, epsilon)
                if record.validation
            ]
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            if shared:
                means = [100 * statistics.mean(c[u] for c in curves) for u in shared]
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
        table = cost_table(self.results, self.root)
        if not table.rows:
            return []
        return [
            Heading("Cost"),
            Text(
                "Times include training and its evaluations, on processors that the "
                "runs shared. Noise is its standard deviation, in clip norms, divided "
                "by the expected number of clipped terms in a batch: the noise that "
                "each term competes with."
            ),
            table,
        ]

    def _clipping(self) -> Document:
        table = clipped_table(self.results)
        if table is None:
            return []
        return [
            Heading("Clipping"),
            Text(
                "Gradients longer than the clip norm, per 100 examples of a batch: "
                "mean over the recorded updates and the seeds (standard error). An arm "
                "that clips m examples as one has at most 100 / m. Where few are "
                "longer, a lower clip norm or automatic clipping would bring less "
                "noise at the same budget. These are private metrics: they were "
                "computed from training examples without noise, and no guarantee "
                "covers them."
            ),
            table,
        ]

    def _classes(self) -> Document:
        if not self.config.class_accuracy:
            return []
        epsilon, rows = self.epsilons[-1], {}
        for arm in self.arms:
            found = [each.accuracy_by_class for each in self.results.of(arm, epsilon)]
            by_class = list(zip(*(values for values in found if values), strict=True))
            if by_class:
                rows[arm] = [
                    100 * statistics.mean(v) if None not in v else float("nan")
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
            (a for a in self.arms if not self.results.microbatch(a)),
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
                maker, images[0], labels[0], dataset.class_names, seed=0, path=path
            )
            png = path.read_bytes()
        return [
            Heading("Views"),
            Picture("views", png, f"The views that {arm} makes of one example"),
        ]

    def _tuning(self) -> Document:
        if not self.results.trials:
            return []
        count = len(self.study.trials)
        refit = (
            "Test runs were then trained on the validation examples too. "
            if self.config.refit
            else ""
        )
        return [
            Heading("Tuning"),
            Text(
                f"Each arm at each epsilon had a budget of {count} trials with "
                f"{self.config.tuning_seeds} seed(s) each. The best trial was chosen "
                "by the validation accuracy of the averaged weights; test images "
                f"played no part. {refit}Training several times on the same examples "
                "costs privacy, which the epsilons above do not include. The last "
                "column is what the choice would cost, in addition to each run that is "
                "published, if the number of trials were drawn from a geometric "
                f"distribution with mean {count} (Papernot and Steinke 2022), by Renyi "
                "accounting. It protects the training examples, not the validation "
                "examples, which are compared without noise."
            ),
            tuning_table(self.results),
        ]

    def _failures(self) -> Document:
        if not self.results.failed:
            return []
        return [
            Heading("Failed runs"),
            Bullets(
                [
                    f"{each.run.arm}, epsilon {exact(each.run.epsilon)}, seed "
                    f"{each.run.seed}: {each.error}"
                    for each in self.results.failed
                ]
            ),
        ]

    def _versions(self) -> Document:
        lines = [
            ", ".join(f"{name} {version}" for name, version in one.items())
            for one in self.results.software
        ]
        return [Heading("Made with"), Bullets(lines)]
