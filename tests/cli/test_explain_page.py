"""The page with sliders: its numbers, by its data and as a browser shows them."""

import functools
import itertools
import json
import re

import numpy as np
import pytest

from dpmix_tf.cli import explain, explain_page
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.attacks import trade_off
from tests.cli.test_commands import run
from tests.experiments.test_runner import chromium

EPSILONS, BATCHES, UPDATES = (1.0, 4.0), (100.0, 300.0), (50, 200)
SETTINGS = {"num_examples": 1000, "delta": 1e-5}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "privacy.html"
    done = run(
        "privacy",
        "--num_examples=1000",
        "--delta=1e-5",
        "--explain",
        "--epsilons=4,1",
        "--batch_sizes=300,100",
        "--numbers_of_updates=50,200",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr
    assert f"Page written to {path}" in done.stdout
    return path


@functools.cache
def curve_and_plan(epsilon, batch, updates):
    plan = PrivacyPlan.for_epsilon(
        epsilon=epsilon, expected_batch_size=batch, updates=updates, **SETTINGS
    )
    return trade_off(Ledger.planned(plan), plan.delta), plan


def expected_numbers(epsilon, batch, updates):
    """What the table must say, by the library: name of a row -> number."""
    curve, plan = curve_and_plan(epsilon, batch, updates)
    found = {
        f"finds, at {100 * rate:g} % false alarms": curve.true_positive_rate(rate)
        for rate in (0.001, 0.01, 0.05)
    }
    sure = {
        f"certainty of somebody {100 * prior:g} % sure": curve.posterior(prior, 1e-5)
        for prior in (0.5, 0.01)
    }
    shares = {"advantage": curve.advantage, **found, **sure}
    return {
        "noise multiplier": plan.noise_multiplier,
        "sampling probability": batch / 1000,
        "mu of Gaussian DP": curve.mu,
        **{name: 100 * share for name, share in shares.items()},
    }


def grid_of(path):
    text = re.search(r'id="grid">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    return json.loads(text)


def check(shown, expected):
    """Within 0.5 %, or a hundredth of a point; an attack is never shown weaker."""
    for name, value in expected.items():
        number = float(shown[name].removesuffix(" %"))
        assert value * (1 - 1e-9) <= number <= max(1.005 * value, value + 0.01), name


@pytest.mark.slow
def test_every_number_of_the_page_is_the_librarys(written):
    grid = grid_of(written)
    rates = np.array(grid["rates"])
    assert [axis["values"] for axis in grid["axes"]] == [
        ["1", "4"],
        ["100", "300"],
        ["50", "200"],
    ]
    plans = list(itertools.product(EPSILONS, BATCHES, UPDATES))
    assert len(grid["points"]) == len(plans)
    for settings, point in zip(plans, grid["points"], strict=True):
        shown = dict(zip(grid["names"], point["rows"], strict=True))
        check(shown, expected_numbers(*settings))
        curve, _ = curve_and_plan(*settings)
        for at, found in ((rates, "curve"), (np.array(explain.RATES), "found")):
            exact = curve.true_positive_rate(at)
            assert np.all(point[found] >= exact * (1 - 1e-9))
            np.testing.assert_allclose(point[found], exact, rtol=0.005)
        assert f"finds at most {shown['finds, at 1 % false alarms']}" in point["words"]


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs Chromium, or DPMIX_CHROMIUM")
def test_sliders_move_the_curve_by_keyboard_without_a_network(written):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-zygote"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        wrong, requests = [], []
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{written}")
        sliders = page.get_by_role("slider")
        names = ["Epsilon", "Expected batch size", "Updates"]
        assert sliders.count() == 3
        tables, curves = set(), set()
        for at in itertools.product((0, 1), repeat=3):
            for name, index in zip(names, at, strict=True):
                page.get_by_role("slider", name=name, exact=True).focus()
                page.keyboard.press("Home")
                for _ in range(index):
                    page.keyboard.press("ArrowRight")
            settings = EPSILONS[at[0]], BATCHES[at[1]], UPDATES[at[2]]
            for i, value in enumerate(settings):
                assert sliders.nth(i).get_attribute("aria-valuetext") == f"{value:g}"
                assert page.locator("output").nth(i).inner_text() == f"{value:g}"
            heads = page.get_by_role("rowheader").all_inner_texts()
            cells = page.get_by_role("cell").all_inner_texts()
            check(dict(zip(heads, cells, strict=True)), expected_numbers(*settings))
            tables.add(tuple(cells))
            curves.add(page.locator("#chosen").get_attribute("d"))
            assert cells[4] in page.locator("#words").inner_text()
            found = trade_off_at_one_percent(page)
            curve, _ = curve_and_plan(*settings)
            assert found == pytest.approx(curve.true_positive_rate(0.01), abs=0.002)
        assert len(tables) == len(curves) == 8
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not wrong
    assert requests == [f"file://{written}"]


def trade_off_at_one_percent(page):
    """Where the plot's second mark stands, as a share of the plot's height."""
    bottom, top = page.evaluate("[y(0), y(1)]")
    height = float(page.locator("circle").nth(1).get_attribute("cy"))
    return (bottom - height) / (bottom - top)


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs Chromium, or DPMIX_CHROMIUM")
def test_the_page_is_accessible_by_its_roles_names_and_focus(written):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-zygote"]
        )
        page = browser.new_page(color_scheme="light")
        page.goto(f"file://{written}")
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.get_by_role("main").count() == 1
        assert page.get_by_role("heading", level=1).count() == 1
        plot = page.get_by_role("img", name="Members found against false alarms")
        described = plot.locator("desc").text_content()
        assert plot.count() == 1 and "finds at most" in described
        assert page.get_by_role("table", name="What any attack can do").count() == 1
        live = page.locator("[aria-live=polite]")
        assert live.locator("table").count() == live.locator("#words").count() == 1
        for name in ("Epsilon", "Expected batch size", "Updates"):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            assert focused.evaluate("e => e.labels[0].textContent") == name
            outline = focused.evaluate("e => getComputedStyle(e).outlineStyle")
            assert outline == "solid"
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for colour in ("--text", "--muted", "--accent"):
                for ground in ("--page", "--panel"):
                    assert contrast(page, colour, ground) >= 4.5, (colour, ground)
        browser.close()


def contrast(page, *names):
    """WCAG's contrast of two colours of the page, 1 to 21."""
    script = "n => getComputedStyle(document.documentElement).getPropertyValue(n)"
    lights = []
    for name in names:
        digits = page.evaluate(script, name).strip().lstrip("#")
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        parts = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(
            parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
        )
        lights.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_rates_of_a_curve_are_never_rounded_down():
    rates = np.array([1e-4, 0.00123401, 0.1, 0.99999, 1.0])
    rounded = explain_page._rounded_up(rates)
    assert rounded == [1e-4, 0.001235, 0.1, 1.0, 1.0]


def test_grids_are_sorted_and_by_default_fit_the_examples():
    grid = explain_page.grid_for(**SETTINGS, epsilons=(8, 1, 8))
    assert grid.epsilons == [1, 8] and len(grid.settings()) == 2 * 4 * 4
    assert grid.batch_sizes == [20, 50, 100, 200]
    assert explain_page.grid_for(num_examples=5, delta=1e-5).batch_sizes == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilons": [0.0, 1.0]}, "--epsilons must be .* above 0"),
        ({"batch_sizes": [2000.0]}, "is larger than num_examples"),
        ({"updates": [0]}, "updates must be"),
        ({"delta": 2.0}, "delta must be"),
    ],
)
def test_values_that_no_plan_can_have_are_refused_before_the_grid(change, words):
    with pytest.raises(DPMixError, match=words):
        explain_page.grid_for(**SETTINGS | change)


def test_a_folder_that_is_missing_is_said_before_the_grid(tmp_path):
    grid = explain_page.grid_for(**SETTINGS)
    with pytest.raises(DPMixError, match="not a folder that can be written to"):
        explain_page.write_page(tmp_path / "nowhere" / "x.html", grid)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output=x.html"], "--output is for --explain"),
        (["--explain", "--batch_sizes=1"], "--batch_sizes is for --output"),
        (["--explain", "--output=x.html", "--epsilon=1"], "does not go with --epsilon"),
        (["--explain", "--output=x.html", "--format=json"], "without --group_size"),
        (["--explain", "--output=x.html", "--epsilons=a"], "must be numbers such as"),
    ],
)
def test_flags_that_do_not_go_with_the_page_are_refused(flags, words):
    done = run("privacy", "--num_examples=1000", "--delta=1e-5", *flags)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr
