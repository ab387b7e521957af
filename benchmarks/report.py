r"""Runs all benchmarks and writes docs/benchmarks.md.

make bench
python benchmarks/report.py --data_dir=$HOME/tensorflow_datasets
"""

import subprocess
import sys
from pathlib import Path

from absl import app, flags
from timing import machine

from dpmix_tf.files import write_text_atomic

_OUTPUT = flags.DEFINE_string("output", "docs/benchmarks", "Folder to write.")
_ONLY = flags.DEFINE_list("only", None, "Which pages; default all.")

HERE = Path(__file__).parent

# File name, title, command and what it measures.
PAGES = (
    (
        "step",
        "One update against the plain step",
        ["step.py"],
        "The floor is the plain, non-private gradient step on one batch of ready-made "
        "views of the same number and size; for the linear probe (a logistic "
        "regression on a frozen WRN-16-4) it is the encoder's forward pass alone. The "
        "private update makes its views inside, clips, adds noise and lets the "
        "optimizer step. Median (range) of turns A B A B in one process.",
    ),
    (
        "bfloat16",
        "The same in bfloat16",
        [
            "step.py",
            "--networks=wide_resnet_16_4,convnet",
            "--views=16",
            "--policy=mixed_bfloat16",
        ],
        "Both sides compute in bfloat16 on float32 weights; clipping, norms, sums and "
        "noise stay in float32.",
    ),
    (
        "peers",
        "The same update in other libraries",
        ["peers.py"],
        "WRN-16-4, one gradient an example over its 16 views. All libraries hold the "
        "same weights and views, and their clipped sums' norms are compared before "
        "anything is timed. Each runs in its own process and environment; they take "
        "turns.",
    ),
    (
        "memory",
        "Memory",
        ["memory.py"],
        "Peak resident memory of a process that makes one update, by the operating "
        "system's account.",
    ),
    (
        "encoded",
        "Encoded views",
        ["encoded.py"],
        "An update of a linear head on views that are encoded once, against one that "
        "encodes them, one with a gradient for each record, and a plain, non-private "
        "step on the same features. The encoder is EfficientNet-Lite0 at 112 pixels.",
    ),
    (
        "features",
        "Features that need no data",
        ["features.py"],
        "Images per second. The first three rows compute the same numbers.",
    ),
    (
        "people_update",
        "An update of people",
        ["people_update.py"],
        "People of 8 images against single images with as many views, in memory; a "
        "convolutional network, batches of about 128 records.",
    ),
    (
        "input",
        "Input",
        ["input.py"],
        "Drawing a Poisson batch; reading one; and the share of a training's time that "
        "it waited for batches.",
    ),
    (
        "scaling",
        "Two processes",
        ["scaling.py"],
        "WRN-16-4, 16 views, --strategy=multi_worker over the loopback interface; each "
        "process is pinned to one core.",
    ),
    (
        "serving",
        "An exported model",
        ["serving.py"],
        "Images a second in one Python process, a SavedModel's signatures against "
        "model.predict of the network; medians of turns.",
    ),
)


def run(arguments):
    """A benchmark's own words; they are shown while it runs."""
    process = subprocess.Popen(
        [sys.executable, HERE / arguments[0], *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        said += line
    if process.wait():
        raise SystemExit(f"benchmarks/{' '.join(arguments)} failed; run it alone.")
    return said


def main(argv):
    """Writes each page when its benchmark has run."""
    del argv
    unknown = set(_ONLY.value or []) - {name for name, *_ in PAGES}
    if unknown:
        raise app.UsageError(f"--only has no {', '.join(sorted(unknown))}.")
    for name, title, arguments, about in PAGES:
        if _ONLY.value and name not in _ONLY.value:
            continue
        command = " ".join(arguments)
        print(f"\n## {title}\n", flush=True)
        page = (
            f"# {title}\n\n{about}\n\n    python benchmarks/{command}\n\n"
            f"{run(arguments).strip()}\n\nMeasured on {machine()}\n"
        )
        write_text_atomic(Path(_OUTPUT.value) / f"{name}.md", page)


if __name__ == "__main__":
    app.run(main)
