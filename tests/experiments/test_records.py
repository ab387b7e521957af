"""Lines of results.jsonl, read and written."""

import dataclasses
import json

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import Run, Study, write_report
from dpmix_tf.experiments.records import Cost, Failed, Finished, Results, from_json
from dpmix_tf.experiments.tables import clipped_table
from tests.conftest import plan_for
from tests.experiments import tiny


def finished(arm="plain", seed=1, accuracy=0.5, tuning=False):
    plan = plan_for(100, updates=12)
    curve = tuple(
        {"event": "validation", "updates": n, "validation_accuracy_ema": n / 100}
        for n in (6, 12)
    )
    tested = {} if tuning else {"test_accuracy": 0.25, "test_accuracy_ema": accuracy}
    return Finished(
        run=Run(arm, 8.0, seed, (("optimizer.learning_rate", 0.5),), tuning),
        final={"event": "final", "updates": 12} | tested,
        curve=curve,
        views_per_example=2,
        spent=plan.to_dict() | {"planned_updates": 12, "statement": "so much"},
        config={"data": {"name": "digits"}, "seed": None},
        software={"tensorflow": "2.0", "git": None},
    )


def test_a_line_of_results_is_read_and_written_to_the_last_byte():
    run = finished().run
    for record in (finished(), finished(tuning=True), Failed(run=run, error="why\n")):
        line = record.to_json()
        assert from_json(line) == record or isinstance(record, Finished)
        assert from_json(line).to_json() == line
        about = {"arm": "plain", "epsilon": 8.0, "seed": 1}
        about |= {"tuning": record.run.tuning, "tuned": dict(run.trial)}
        assert line.startswith(json.dumps(about)[:-1] + ', "status": ')


def test_a_record_says_what_a_run_found():
    record = finished()
    assert (record.accuracy, record.last_accuracy) == (0.5, 0.25)
    assert record.accuracy_by_class is None
    assert record.validation == {6: 0.06, 12: 0.12}
    assert record.score == 0.5 and finished(tuning=True).score == 0.12
    assert record.plan == plan_for(100, updates=12)
    assert record.clipped is None


def test_a_report_says_how_much_was_clipped_where_it_was_measured(tmp_path):
    records = []
    for seed, fractions in ((1, (0.5, 0.7)), (2, (0.2, 0.4))):
        record = finished("mixed", seed)
        curve = tuple(
            event | {"private_clipped": fraction}
            for event, fraction in zip(record.curve, fractions, strict=True)
        )
        records.append(dataclasses.replace(record, curve=curve))
    assert [each.clipped for each in records] == pytest.approx([0.6, 0.3])
    study = Study(tiny.get_config())
    assert clipped_table(Results(study, [finished()])) is None
    table = clipped_table(Results(study, [finished(), *records]))
    assert table.rows == [["mixed", "45.00 (15.00)"]]
    config = tiny.get_config()
    config.show_views = False
    records = [
        dataclasses.replace(each, config=each.config | {"network": {"name": "x"}})
        for each in (finished(), *records)
    ]
    write_report(Study(config), records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Clipping" in text and "| mixed | 45.00 (15.00) |" in text
    assert "no guarantee covers them" in text
    told = json.loads((tmp_path / "figures.json").read_text())
    assert [run["test_accuracy_ema"] for run in told["runs"]] == [
        each.accuracy for each in records
    ]
    assert told["trials"] == [] and told["software"]


def test_records_are_found_by_arm_and_epsilon_in_order_of_seed():
    failed = Failed(run=Run("third", 8.0, 1, (), False), error="why")
    several = [finished("mixed", 2, 0.2), finished("mixed", 1, 0.1), finished()]
    results = Results(
        Study(tiny.get_config()), [*several, failed, finished(tuning=True)]
    )
    assert results.arms == ["plain", "mixed"] and results.epsilons == [8.0]
    assert results.percents("mixed", 8.0) == [10.0, 20.0]
    assert results.percents("mixed", 4.0) == []
    assert results.failed == [failed] and len(results.trials) == 1


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"arm": "plain"}', "nonsense"])
def test_what_is_not_a_record_is_refused(line):
    with pytest.raises(DPMixError, match="Not a line of results.jsonl"):
        from_json(line)


def test_costs_of_several_processes_add_up(tmp_path):
    assert Cost.read(tmp_path) == Cost()
    for _ in range(2):
        (Cost.read(tmp_path) + Cost(seconds=1.5, updates=3)).write(tmp_path)
    assert (tmp_path / "cost.json").read_text() == '{"seconds": 3.0, "updates": 6}'
