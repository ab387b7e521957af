"""What MkDocs does with these pages: brings in the ones that live elsewhere, and links.

README.md, CONTRIBUTING.md and others are read in the repository and on the site. Links
among them are the repository's; here they become the site's. What the site does not
have, such as a folder of code, is named without a link.
"""

import json
import posixpath
import re
import textwrap
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# Page of the site -> file of the repository.
ELSEWHERE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "server_files.md": "serving/README.md",
    "notebooks/digits.md": "docs/notebooks/digits.ipynb",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def on_files(files, config):
    """Adds the pages that live elsewhere, and the files beside them."""
    for page, origin in ELSEWHERE.items():
        path = ROOT / origin
        text = path.read_text()
        content = notebook_page(text) if path.suffix == ".ipynb" else text
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns the repository's links into the site's."""
    here = page.file.src_uri
    origin = ELSEWHERE.get(here, f"docs/{here}")
    pages = {place: name for name, place in ELSEWHERE.items()}

    def relink(match):
        picture, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        target, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        found = pages.get(place, place.removeprefix("docs/"))
        if place not in pages and not place.startswith("docs/"):
            if not (ROOT / place).exists():
                raise FileNotFoundError(f"{origin} links to {place}, which is missing.")
            return text
        link = posixpath.relpath(found, posixpath.dirname(here) or ".")
        return f"{picture}[{text}]({link}{'#' if anchor else ''}{anchor})"

    parts, last = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(relink, markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _LINK.sub(relink, markdown[last:])])


def notebook_page(text):
    """A notebook as Markdown: its text, its code, and what the code printed."""
    blocks = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                lines = "".join(output["text"]).splitlines()
                wrapped = "\n".join(textwrap.fill(line, 76) for line in lines)
                blocks.append(f"```text\n{wrapped}\n```")
            elif "image/png" in output.get("data", {}):
                png = "".join(output["data"]["image/png"]).replace("\n", "")
                blocks.append(f"![Output of the cell](data:image/png;base64,{png})")
    return "\n\n".join(blocks)
