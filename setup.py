"""Package metadata; the pinned environment is requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REQUIREMENTS = [
    line.split("#")[0].strip()
    for line in (HERE / "requirements.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "privacy",
    "preview_views",
    "generate_pool",
    "experiment",
    "audit",
    "export",
)

setup(
    name="dpmix_tf",
    version="0.1.0",
    description="Differentially private image classifiers with DP-Mix, for TensorFlow",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.12",  # tensorflow-privacy 0.9.0 asks for < 3.12
    packages=find_packages(include=["dpmix_tf", "dpmix_tf.*"]),
    package_data={"dpmix_tf.serving": ["*.schema.json"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "gpu": ["tensorflow[and-cuda]==2.21.0"],
        "dev": [
            "hypothesis==6.168.5",
            "kymatio==0.3.0",  # what scattering features are compared with
            "mypy==2.4.1",
            "playwright==1.63.0",  # opens a report where Chromium is installed
            "psutil==7.2.2",  # the benchmarks say what machine they ran on
            "pytest==9.1.1",
            "ruff==0.17.5",
        ],
    },
    entry_points={
        "console_scripts": [
            f"dpmix-{name.replace('_', '-')} = dpmix_tf.cli.{name}:main"
            for name in COMMANDS
        ]
    },
)
