"""Shows the examples in docstrings as code: the reference is made from docstrings."""

import re
import textwrap

import griffe

_EXAMPLE = re.compile(r"^Example:\n((?:  .*\n|\n)*  .*)", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences what follows "Example:"."""

    def on_object(self, *, obj, **unused):
        """Changes the docstring of one class or function before it is parsed."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found):
    code = textwrap.dedent(found[1])
    language = "pycon" if code.startswith(">>>") else "python"
    return f"For example:\n\n```{language}\n{code}\n```"
