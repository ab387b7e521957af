"""Writes the museum's table: python -m tests.museum.table docs/museum.md."""

import sys

from dpmix_tf.files import write_text_atomic
from tests.museum.rooms import EXHIBITS


def rows():
    """One line an exhibit; on the code as it is, what the same check sees."""
    healthy = {}
    for exhibit in EXHIBITS:
        check = exhibit.check
        if check not in healthy:
            healthy[check] = check()[1]
        with exhibit.put_in():
            caught, saw = check()
        if not caught:
            raise SystemExit(f"Not caught: {exhibit.fault} ({saw}).")
        title = check.__doc__.splitlines()[0].rstrip(".")
        title = title[0].lower() + title[1:]
        yield f"| {exhibit.fault} | {title} | {saw} | {healthy[check]} |"


def main(path):
    """Prints and writes the page."""
    page = (
        "# A museum of broken privacy\n\n"
        "Each fault is put into the real code, for the length of a test, and a check "
        "looks at it from outside (`tests/museum`). The last column is what the check "
        "sees in the code as it is. Made by `make museum`.\n\n"
        "| fault | what catches it | what it sees | in the code as it is |\n"
        "|---|---|---|---|\n"
    )
    for row in rows():
        print(row, flush=True)
        page += row + "\n"
    write_text_atomic(path, page)


if __name__ == "__main__":
    main(sys.argv[1])
