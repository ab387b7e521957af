"""Version 2 of the privacy card: what it says, how it is shown, what it hides."""

import html
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dpmix_tf.cli.explain import explain
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger
from dpmix_tf.privacy.attacks import RATES
from dpmix_tf.privacy.ledger import CHOSEN_SEED
from dpmix_tf.serving import card_blocks, export, registry, verify_card
from dpmix_tf.serving.card_page import sections, to_html, to_markdown
from dpmix_tf.serving.privacy_card import check_card, read_card
from dpmix_tf.serving.verify_card import check_numbers
from dpmix_tf.training import Trainer
from tests.conftest import ROOT
from tests.experiments.test_runner import chromium
from tests.serving.cards import card_of, plan_of
from tests.serving.conftest import small_config
from tests.serving.test_verify_card import RELEASE

TOLD = {
    "curator": "A hospital",
    "curator_type": "Nonprofit",
    "purpose": "Finds fractures.",
    "intended_use": "To be looked at.",
    "region": "Norway",
    "contact": "data@hospital.example",
    "access": "Our doctors.",
    "justification": "As small as is useful.",
}
SCRIPT = '<script>alert("1|2")</script>'
FIGURES = {
    "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95},
    "balanced_accuracy": 0.9,
    "calibration_error": 0.01,
    "by_class": {
        "0": {"examples": 5, "accuracy": 0.95},
        "1": {"examples": 1, "accuracy": 0.85},
    },
}
FINAL = {"updates": 50, "test_accuracy_ema": 0.9, "test_figures_ema": FIGURES}


@pytest.fixture(scope="module")
def told():
    return card_of(plan_of(), told=TOLD, made_of={"final": FINAL})


def test_what_nobody_said_is_not_stated(told):
    silent = card_of(plan_of())
    assert set(silent["deployment"].values()) == {None}
    for name in sections(silent)["Release"]:
        stated = f"| {name} | not stated |" in to_markdown(silent)
        assert stated == (name != "date of this card")
        assert f"| {name} | not stated |" not in to_markdown(told)
    for text in TOLD.values():
        assert text in to_markdown(told) and text in to_html(told)
    assert told["deployment"] == TOLD
    with pytest.raises(DPMixError, match="curator_type"):
        card_of(plan_of(), told={"curator_type": "Pirates"})


def test_a_run_from_before_these_settings_has_a_card():
    assert set(card_blocks.deployment_of({}).values()) == {None}


def test_the_meaning_is_what_explaining_the_epsilon_says(told):
    plan = plan_of()
    said = explain(
        Ledger.planned(plan, 50), delta=plan.delta, accountant=plan.accountant
    ).to_dict()
    meaning = told["meaning"]
    assert meaning["mu"] == said["mu"] > 0
    assert meaning["advantage"] == said["advantage"]
    for rate in RATES:
        limit = said["true_positive_rates"][f"{rate:g}"]["curve"]
        assert meaning["true_positive_rates"][f"{rate:g}"] == limit > rate


@pytest.mark.parametrize(
    "card",
    [
        dict(plan=plan_of(), conditions=[CHOSEN_SEED]),
        dict(plan=plan_of(noise_multiplier=0.0)),
    ],
)
def test_without_a_guarantee_there_is_no_meaning(card):
    card = card_of(**card)
    assert card["meaning"] is card["mechanism"]["variant"] is None
    assert "| any attack | no limit: there is no guarantee |" in to_markdown(card)
    assert "| variant | none: no guarantee |" in to_markdown(card)
    with pytest.raises(DPMixError, match="states no guarantee"):
        registry.to_registry(card)


def test_choosing_among_trials_is_told_and_lets_attacks_do_more(told):
    assert told["tuning"] is None
    trials = {"trials": 20.0, "trials_distribution": "poisson", "score_noise": 2.0}
    card = card_of(plan_of(accountant="rdp", **trials))
    assert card["tuning"] == trials
    assert card["meaning"]["advantage"] > told["meaning"]["advantage"]
    assert "chosen among 20 trials on average, which epsilon" in to_markdown(card)
    checks = check_numbers(card)
    assert all(check.agrees for check in checks)
    # Who takes the condition out of the statement is found out.
    card["statement"] = card["statement"].replace("must stay secret", "may be told")
    assert [c.name for c in check_numbers(card) if not c.agrees] == [
        "statement's choice"
    ]


def test_the_mechanism_is_that_of_the_run(told):
    mechanism = told["mechanism"]
    assert mechanism["clipping"] == "fixed" and mechanism["gamma"] is None
    assert mechanism["post_processing"] == [
        "the optimizer, SGD",
        "the average of the weights over updates",
        "export as a SavedModel",
    ]
    other = card_of(
        plan_of(clipping="automatic", gamma=0.02), weights="raw", made_of={"form": "x"}
    )["mechanism"]
    assert (other["clipping"], other["gamma"]) == ("automatic", 0.02)
    assert other["post_processing"] == ["the optimizer, SGD", "export as x"]
    assert other["images_read_per_person"] is None
    people = card_of(plan_of(record="person"))["mechanism"]
    assert people["images_read_per_person"] == 16


def audit_of(plan, bound=0.5):
    attacks = {"black box": {"canaries": 100}, "white box": {"canaries": 5_000}}
    training = {
        "epsilon_lower_bound": bound,
        "confidence": 0.95,
        "claimed_epsilon": plan.epsilon(),
        "delta": plan.delta,
        "refuted": False,
        "attacks": attacks,
    }
    return {"training": training}


def test_an_audit_of_the_same_plan_is_on_the_card(tmp_path):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit_of(plan_of())))
    card = card_of(plan_of(), told=TOLD, made_of={"audit": path})
    assert card["audit"]["canaries"] == 5_100
    assert not [one for one in verify_card.check_numbers(card) if not one.agrees]
    shown = "epsilon >= 0.500 with 95% confidence, by 5,100 canaries"
    assert shown in to_markdown(card).replace("&gt;", ">")
    details = registry.to_registry(card)["deployment"]["privacy_loss"]
    assert "epsilon >= 0.500" in details["privacy_parameters_details"]
    path.write_text(json.dumps(audit_of(plan_of(noise_multiplier=1.3))))
    with pytest.raises(DPMixError, match="audits another plan"):
        card_of(plan_of(), made_of={"audit": path})
    path.write_text(json.dumps({"membership": {}}))
    with pytest.raises(DPMixError, match="not an audit of training"):
        card_of(plan_of(), made_of={"audit": path})


def test_figures_by_class_and_subgroup_are_shown_without_counts(tmp_path):
    path = tmp_path / "said.json"
    group = {"size": 3, "examples": 9, "accuracy": FIGURES["accuracy"]}
    said = {"split": "test", "updates": 50}
    said["by_sex_ema"] = {
        "groups": {"f": group, "m": group},
        "smallest_group": {"name": "f", "size": 3},
    }
    path.write_text(json.dumps(said))
    card = card_of(plan_of(), made_of={"final": FINAL, "evaluation": path})
    assert card["subgroups"] == {
        "sex": {name: {"accuracy": FIGURES["accuracy"]} for name in "fm"}
    }
    assert "examples" not in str(card["test_figures"])
    page = to_markdown(card)
    assert "lowest first | 1: 0.8500, 0: 0.9500 |" in page
    assert "| by sex | f: 0.9000 (0.8000 to 0.9500), m: 0.9000" in page
    for change in ({"updates": 49}, {"split": "validation"}, {"warning": "private"}):
        path.write_text(json.dumps(said | change))
        with pytest.raises(DPMixError, match="does not hold figures by subgroup"):
            card_of(plan_of(), made_of={"evaluation": path})
    path.write_text("[]")
    with pytest.raises(DPMixError, match="not an evaluation"):
        card_of(plan_of(), made_of={"evaluation": path})


def test_no_figure_without_noise_stands_beside_a_noised_one(told):
    """Nor is there one of weights of which none was released."""
    final = {"updates": 50, "test_accuracy_noised": 0.8}
    made_of = {"final": final, "test_release": RELEASE}
    card = card_of(plan_of(), made_of=made_of)
    assert card["test_release"] == {"accuracy": 0.8, **RELEASE}
    assert card["test_accuracy"] is card["test_figures"] is None
    page = to_markdown(card)
    assert "| test accuracy, with noise | 0.8000 |" in page
    assert "apart from the training records' epsilon" in page
    raw = card_of(plan_of(), weights="raw", made_of=made_of)
    assert raw["test_release"]["accuracy"] is None
    assert "| test accuracy, with noise | not of these weights |" in to_markdown(raw)
    groups = {"sex": {"f": {}}}
    for name, value in (
        ("test_accuracy", 0.9),
        ("test_figures", FIGURES),
        ("subgroups", groups),
    ):
        with pytest.raises(DPMixError, match=f"{name}"):
            check_card(card | {name: value}, "The card")


def test_a_run_with_noised_accuracy_is_exported_with_nothing_else(tmp_path):
    config = small_config()
    config.report.noise = 4.0
    trainer = Trainer(config, tmp_path / "run")
    final = trainer.run()
    export.export_file(tmp_path / "run", tmp_path / "x.keras")
    card = read_card(tmp_path / "x.keras.privacy_card.json")
    release = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert card["test_release"] == {
        "accuracy": final["test_accuracy_noised"],
        **release["test_release"],
    }
    assert card["test_accuracy"] is card["test_figures"] is None
    assert card["mechanism"]["post_processing"][-1] == "export as a Keras file"
    assert not [one for one in verify_card.check_numbers(card) if not one.agrees]


def test_whatever_users_wrote_is_escaped():
    """In Markdown too, which passes HTML on."""
    names = ("cat", f"dog{SCRIPT}")
    wrote = dict.fromkeys(TOLD, SCRIPT) | {"curator_type": None}
    final = FINAL | {"test_figures_ema": FIGURES | {"by_class": {}}}
    final["test_figures_ema"]["by_class"] = {name: {"accuracy": 1.0} for name in names}
    card = card_of(
        plan_of(),
        names=names,
        told=wrote,
        made_of={"final": final, "data_name": SCRIPT},
    )
    page, text = to_html(card), to_markdown(card)
    assert "<script" not in page and "<script" not in text
    assert page.count(html.escape(SCRIPT)) >= len(wrote) + 2
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def test_the_page_loads_nothing_from_elsewhere(told):
    page = to_html(told)
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script", page)


def crowded():
    """A card with about as much on it as there can be."""
    long = "Words that go on for long enough to be cut somewhere. " * 10
    figures = FIGURES | {
        "by_class": {f"class {n}": {"accuracy": n / 1000} for n in range(1000)}
    }
    final = FINAL | {"test_figures_ema": figures}
    return card_of(
        plan_of(record="person", clipping="automatic"),
        before=[
            plan_of(record="person", updates=n, noise_multiplier=n) for n in (2, 3)
        ],
        conditions=["shared_seed", "class_weights", "public_pool", "private_metrics"],
        told=dict.fromkeys(TOLD, long) | {"curator_type": "Industry"},
        names=[f"class {number}" for number in range(1000)],
        made_of={"final": final},
    )


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs Chromium, or DPMIX_CHROMIUM")
@pytest.mark.parametrize("card", ["told", "crowded"])
def test_it_prints_to_one_sheet_of_a4(card, told, tmp_path):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "card.html"
    path.write_text(to_html(told if card == "told" else crowded()))
    asked = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-zygote"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        printed = page.pdf(format="A4", prefer_css_page_size=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
    assert asked == [path.as_uri()] and wide <= 390


def test_an_entry_of_the_registry_follows_its_schema(told):
    jsonschema.Draft202012Validator.check_schema(registry.schema())
    entry = yaml.safe_load(registry.to_yaml(told))
    assert entry == registry.to_registry(told)
    deployment = entry["deployment"]
    assert deployment["basic"]["data_curators"] == [
        {"data_curator_name": "A hospital", "data_curator_type": "Nonprofit"}
    ]
    assert deployment["basic"]["publication_date"] == told["released"]
    assert deployment["privacy_loss"]["privacy_parameters"] == {
        "epsilon": told["privacy"]["epsilon"],
        "delta": told["privacy"]["delta"],
    }
    assert deployment["implementation"]["justification"] == TOLD["justification"]
    people = registry.to_registry(card_of(plan_of(record="person"), told=TOLD))
    loss = people["deployment"]["privacy_loss"]
    assert loss["privacy_unit"] == "person"
    assert loss["number_of_privacy_units"] == plan_of().num_examples


def test_what_the_registry_needs_is_asked_for(told):
    for name in ("curator", "curator_type", "intended_use", "region"):
        card = card_of(plan_of(), told=TOLD | {name: None})
        with pytest.raises(DPMixError, match=f"asks for {name}, which"):
            registry.to_registry(card)
    silent = card_of(plan_of(), told=TOLD | {"access": None, "justification": None})
    told_of = registry.to_registry(silent)["deployment"]
    assert told_of["deployment_model"]["access_type_details"] == "not stated"
    older = read_card(ROOT / "tests" / "serving" / "card_version_1.json")
    with pytest.raises(DPMixError, match="of version 1"):
        registry.to_registry(older)


def test_a_card_of_version_1_is_still_shown():
    older = read_card(ROOT / "tests" / "serving" / "card_version_1.json")
    page = to_markdown(older)
    assert "| trained before | 20 updates at noise multiplier 2 |" in page
    assert "## Mechanism" not in page and "<h2>Privacy</h2>" in to_html(older)
    del older["warning"], older["privacy"]["seed_origin"]
    assert "| seed | from the operating system |" in to_markdown(
        check_card(older, "an older card")
    )


EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*/privacy_card.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_committed_cards_are_valid_and_agree_with_themselves(path: Path):
    card = read_card(path)
    assert card["schema_version"] == 2
    checks = verify_card.verify_card(path)
    assert checks and all(check.agrees for check in checks)
    assert path.with_suffix(".md").read_text() == to_markdown(card)
    assert path.with_suffix(".html").read_text() == to_html(card)
    assert (path.parent / "registry.yaml").read_text() == registry.to_yaml(card)
    assert str(ROOT) not in path.read_text() and "/tmp" not in path.read_text()


def test_there_are_cards_of_images_and_of_people():
    cards = [read_card(path) for path in EXAMPLES]
    assert {card["privacy"]["record"] for card in cards} == {"example", "person"}
    assert any(card["test_release"] for card in cards)
    assert {len(card["mechanism"]["composition"]) for card in cards} == {1, 2}
