"""Sphinx's configuration: `make docs`.

Nothing is fetched from the network, and every warning is an error.  The pages are Markdown (MyST),
but for reference/, which is made of the docstrings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyktls

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pyktls"
author = "the pyktls authors"
copyright = author  # noqa: A001  (Sphinx's name)
version = release = pyktls.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"pyktls {release}"
html_show_copyright = False

# Anchors of headings, for links within and between pages.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90


def _mend(_: Sphinx, what: str, __: str, thing: Any, ___: Any, lines: list[str]) -> None:
    """Take out of a docstring what is not said of the thing itself."""
    if what == "data" and lines and lines[0] in (type(thing).__doc__ or "").splitlines()[:1]:
        lines.clear()  # that of int, say
    elif lines[:1] == ["--"]:
        del lines[0]  # the end of a signature that was written for C


def setup(app: Sphinx) -> None:
    """As Sphinx calls it."""
    app.connect("autodoc-process-docstring", _mend)
