"""A document of headings, text, tables and pictures, as Markdown and as HTML."""

import base64
import dataclasses
import html
import operator
from pathlib import Path

from dpmix_tf.files import write_atomic, write_text_atomic


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list."""

    items: list[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, sortable in HTML; a cell that starts with a number sorts by it."""

    header: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file, named without suffix, with a description for those who cannot see."""

    name: str
    png: bytes
    description: str


Document = list[Heading | Text | Bullets | Table | Picture]


def write_markdown(document: Document, folder: Path) -> Path:
    """Writes report.md and its pictures into the folder."""
    blocks = []
    for part in document:
        if isinstance(part, Heading):
            blocks.append("#" * part.level + " " + part.text)
        elif isinstance(part, Text):
            blocks.append(part.text)
        elif isinstance(part, Bullets):
            blocks.append("\n".join(f"- {item}" for item in part.items))
        elif isinstance(part, Table):
            lines = [part.header, ["---"] * len(part.header), *part.rows]
            blocks.append(
                "\n".join(
                    "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                    for row in lines
                )
            )
        else:
            name = f"{part.name}.png"
            write_atomic(folder / name, operator.methodcaller("write", part.png))
            blocks.append(f"![{part.description}]({name})")
    path = folder / "report.md"
    write_text_atomic(path, "\n\n".join(blocks) + "\n")
    return path


def write_html(document: Document, folder: Path) -> Path:
    """Writes report.html, which needs no other file and no network access."""
    title = next(part.text for part in document if isinstance(part, Heading))
    body = "\n".join(_element(part) for part in document)
    path = folder / "report.html"
    write_text_atomic(
        path,
        _PAGE.replace("TITLE", html.escape(title)).replace("BODY", body),
    )
    return path


def _element(part) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{html.escape(part.text)}</h{part.level}>"
    if isinstance(part, Text):
        return f"<p>{html.escape(part.text)}</p>"
    if isinstance(part, Bullets):
        items = "".join(f"<li>{html.escape(item)}</li>" for item in part.items)
        return f"<ul>{items}</ul>"
    if isinstance(part, Table):
        header = "".join(
            f'<th aria-sort="none"><button>{html.escape(cell)}</button></th>'
            for cell in part.header
        )
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in part.rows
        )
        return (
            f'<div class="wide"><table><thead><tr>{header}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    data = base64.b64encode(part.png).decode()
    return (
        f'<figure><img alt="{html.escape(part.description)}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; }
.wide, pre { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0;
  font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #bbb; padding: 0.3rem 0.7rem; text-align: left;
  white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072B2; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f3f3f3; padding: 0.7rem; }
</style>
</head>
<body>
BODY
<script>
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const cell = button.parentElement, column = cell.cellIndex;
    const up = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of cell.parentElement.cells) other.ariaSort = "none";
    cell.ariaSort = up ? "ascending" : "descending";
    const body = cell.closest("table").tBodies[0];
    const value = row => row.cells[column].textContent;
    const compare = (a, b) => {
      const x = parseFloat(value(a)), y = parseFloat(value(b));
      if (isNaN(x) || isNaN(y)) return value(a).localeCompare(value(b));
      return x - y;
    };
    const rows = [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a));
    body.append(...rows);
  });
}
</script>
</body>
</html>
"""
