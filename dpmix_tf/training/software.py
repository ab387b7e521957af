"""Records the software versions used for training."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import dpmix_tf

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-cv",
    "tensorflow-privacy",
    "dp-accounting",
)


def package_versions() -> dict[str, str]:
    """Returns the versions of what the guarantee rests on, by name, Python's too."""
    found = {"dpmix_tf": dpmix_tf.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def versions() -> dict[str, str | None]:
    """Returns `package_versions`, and our git revision.

    Returns:
      Also "git_revision": the commit, followed by "-dirty" if files were changed; None
      if dpmix_tf does not run from a checkout.
    """
    return {**package_versions(), "git_revision": _git_revision()}


def _git_revision() -> str | None:
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=here.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails in a foreign repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
