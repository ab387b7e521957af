"""README and docs say what is so: code runs, commands exist, links lead somewhere.

A page says of a block of code that it is not run, and why, in a comment right before:

  <!-- not run: it needs a GPU -->

and of numbers that are smaller when it is tested, for time:

  <!-- tested with updates=2 instead of updates=100 -->
"""

import ast
import functools
import http.server
import importlib
import inspect
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import notebook
from tests.conftest import ROOT
from tests.experiments.test_runner import chromium

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "serving" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
FENCE = re.compile(
    r"(?:<!--(?P<comment>[^>]*)-->\n)?"
    r"^```(?P<language>python|bash)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """Code on a page: where, what, and why it is not run, if it is not."""

    page: Path
    line: int
    code: str
    not_run: str | None

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language):
    for page in PAGES:
        text = page.read_text()
        for found in FENCE.finditer(text):
            if found["language"] != language:
                continue
            comment = (found["comment"] or "").strip()
            code = found["code"]
            reason = comment.removeprefix("not run:").strip()
            smaller = re.fullmatch(r"tested with (\S+) instead of (\S+)", comment)
            if smaller:
                assert smaller[2] in code, f"{page}: no {smaller[2]} in the block"
                code = code.replace(smaller[2], smaller[1])
            line = text.count("\n", 0, found.start("code")) + 1
            not_run = reason if comment.startswith("not run:") else None
            yield Block(page, line, code, not_run)


PYTHON = list(blocks("python"))
SHELL = list(blocks("bash"))
RUNNING = [page for page in PAGES if any(b.page == page for b in PYTHON if not b[3])]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_python_on_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in PYTHON:
        if block.page == page and not block.not_run:
            code = "\n" * (block.line - 1) + block.code  # lines as on the page
            exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("block", [b for b in PYTHON if b.not_run], ids=str)
def test_python_that_is_not_run_says_why_and_parses(block):
    ast.parse(block.code)
    assert len(block.not_run) > 10
    pytest.skip(block.not_run)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_printed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(path.read_text())
    ran = json.loads(path.read_text())
    notebook.execute(ran)
    for before, after in zip(shown["cells"], ran["cells"], strict=True):
        kinds = [
            [output["output_type"] for output in cell.get("outputs", [])]
            for cell in (before, after)
        ]
        assert kinds[0] == kinds[1], "".join(before["source"])


# Commands of other programs, of which no flag is checked.
OTHERS = {"base64", "curl", "docker", "git", "pip", "saved_model_cli", "tensorboard"}
# With nothing on its PATH bash finds no command, and hands its words to this function.
RECORDER = """
PATH=/nowhere
command_not_found_handle() { printf '%s\\0' "$@" >&3; printf '\\0' >&3; }
source() { :; }
cd() { :; }
"""


def commands(code, folder):
    """The commands of a shell script, as bash splits them into words; none is run."""
    target = folder / "commands"
    script = f"exec 3>'{target}'\n{RECORDER}\n{code}"
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    records = target.read_bytes().decode().split("\0\0")
    return [record.split("\0") for record in records if record]


@functools.cache
def flags_of(script):
    """The flags that a script defines, by its source."""
    names = {"help"}
    for path in (script, ROOT / "dpmix_tf" / "cli" / script.name):
        if path.is_file():
            text = path.read_text()
            names |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
            if "define_workdir(" in text:
                names.add("workdir")
            if "define_config(" in text:
                names.add("config")
    return names


def check_python(words):
    """A script that is there, flags that it has, fields that its config has."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
        return
    script = ROOT / words[0]
    assert script.is_file(), f"there is no {words[0]}"
    config = None
    for word in words[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        first, _, field = name.partition(".")
        assert first in flags_of(script), f"{words[0]} has no --{first}"
        if name == "config":
            path, _, argument = value.partition(":")
            assert (ROOT / path).is_file(), f"there is no {path}"
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            config = module.get_config(argument) if argument else module.get_config()
        elif first == "config":
            settings = config
            for part in field.split("."):
                assert part in settings, f"{script.name}: the config has no {field}"
                settings = settings[part]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_on_a_page_exist_with_their_flags(block, tmp_path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    found = commands(block.code, tmp_path)
    assert found
    for command, *words in found:
        if command == "make":
            assert set(words) <= targets, f"make {words}"
        elif command in ("python", "python3"):
            check_python(words)
        else:
            assert command in OTHERS, command
        # A chosen seed is for research: no command that people copy sets one.
        assert not any(word.startswith("--config.seed=") for word in words)


def test_every_command_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "commands.md").read_text()
    for path in (ROOT / "bin").glob("*.py"):
        assert f"python bin/{path.name} --" in page, path.name


def test_readme_is_short_and_its_speeds_are_the_measured_ones():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 160
    (row,) = re.findall(r"^\| one update of WRN.*$", readme, re.M)
    shown = re.findall(r"\d+\.\d", row)
    peers = (ROOT / "docs" / "benchmarks" / "peers.md").read_text()
    measured = re.findall(r"\| (\d+\.\d) \|$", peers, re.M)
    assert len(shown) == 6 and set(shown) <= set(measured)
    step = (ROOT / "docs" / "benchmarks" / "step.md").read_text()
    for arm, text in (("DP-Mix_Self", "34 views"), ("DP-SGD", "plain DP-SGD")):
        ratios = re.findall(rf"\| {arm} .* (\d\.\d\d) \| [\d.]+% \|$", step, re.M)
        said = re.search(rf"{text}.*?(\d\.\d\d)\s+to\s+(\d\.\d\d)", readme, re.S)
        assert said and said.groups() == (min(ratios), max(ratios))


def test_accuracies_on_the_page_of_results_are_the_reports():
    text = (ROOT / "docs" / "results.md").read_text().split("## Single runs")[0]
    made = [*(ROOT / "docs").glob("*/report.md"), *(ROOT / "docs/people").glob("*.md")]
    reports = "".join(path.read_text() for path in made)
    cells = re.findall(r"\d\d\.\d\d \(\d\.\d\d\)", text)
    assert len(cells) > 40 and all(cell in reports for cell in cells)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs").glob("*/figures.json")), ids=lambda p: p.parent.name
)
def test_the_tables_of_a_report_follow_from_its_runs(path):
    report = (path.parent / "report.md").read_text()
    runs = json.loads(path.read_text())["runs"]
    for arm, epsilon in {(run["arm"], run["epsilon"]) for run in runs}:
        for kind in ("test_accuracy", "test_accuracy_ema"):
            values = [
                100 * run[kind]
                for run in runs
                if (run["arm"], run["epsilon"]) == (arm, epsilon)
            ]
            error = statistics.stdev(values) / math.sqrt(len(values))
            assert f"{statistics.mean(values):.2f} ({error:.2f})" in report


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_of_the_site_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loaded = r'<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)="(?:https?:)?//'
    for page in pages:
        assert not re.search(loaded, page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()
        )


@pytest.mark.slow
def test_the_reference_describes_what_is_public(site):
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    import dpmix_tf

    for name in dpmix_tf.__all__:
        module = inspect.ismodule(getattr(dpmix_tf, name))
        wanted = rf"dpmix_tf\.{name}\.\w+" if module else rf"dpmix_tf\.[\w.]*{name}"
        assert re.search(f'id="{wanted}"', text), name


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs Chromium, or DPMIX_CHROMIUM")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_site_opens_in_chromium(site, width):
    """Without an error, a missing picture, or a request to anywhere else."""
    from playwright.sync_api import sync_playwright

    handler = functools.partial(_Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    errors = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-zygote"]
        )
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda r: (
                r.url.startswith((home, "data:", "blob:")) or errors.append(r.url)
            ),
        )
        for name in ("index", "guarantee", "notebooks/digits", "results", "api/model"):
            page.goto(f"{home}{name}.html", wait_until="networkidle")
            assert page.locator("h1").count() == 1, name
            images = page.evaluate(
                "[...document.images].map(i => i.complete && i.naturalWidth > 100)"
            )
            assert all(images), name
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide"
        browser.close()
    server.shutdown()
    assert not errors


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *unused):
        pass
