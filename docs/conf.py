"""Settings of the documentation site: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
os.environ["MPLBACKEND"] = "Agg"

from sphinx.application import Sphinx  # noqa: E402
from sphinx.util import logging  # noqa: E402

import fastopt  # noqa: E402
import pages  # noqa: E402

project = "fastopt"
author = "The fastopt developers"
copyright = author  # noqa: A001
version = release = fastopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",  # for its role "autolink"
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

default_role = "autolink"  # `Adam` in a docstring is a link where there is such a name
add_module_names = False
# Every public method and attribute of a class has an entry, but for those of Python's classes.
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "inherited-members": "object, tuple, Exception",
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more than the annotations
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True  # autodoc makes the entries of attributes
napoleon_use_rtype = False
napoleon_use_param = False

html_theme = "furo"
html_title = f"fastopt {release}"
html_static_path = ["_static"]
html_css_files = ["side_by_side.css"]
html_copy_source = False


def setup(app: Sphinx) -> None:
    pages.make_pictures(DOCS, logging.getLogger("fastopt").info)
