"""Runs a notebook's cells in order, in one namespace.

  python -m tests.notebook docs/notebooks/digits.ipynb   # writes the outputs into it

The notebooks use no magic, so this does what a kernel would, without Jupyter.
"""

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path


def execute(notebook):
    """Runs the code cells and puts what they print and draw into them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    namespace = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {count}", "exec"), namespace)
        cell["execution_count"] = count
        cell["outputs"] = []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append(
                {"name": "stdout", "output_type": "stream", "text": text}
            )
        for number in plt.get_fignums():
            png = io.BytesIO()
            plt.figure(number).savefig(png, dpi=70, bbox_inches="tight")
            data = {"image/png": base64.b64encode(png.getvalue()).decode()}
            cell["outputs"].append(
                {"data": data, "metadata": {}, "output_type": "display_data"}
            )
        plt.close("all")
    return namespace


def main():
    path = Path(sys.argv[1]).resolve()
    notebook = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        execute(notebook)
    path.write_text(json.dumps(notebook, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
