"""Settings of the documentation site: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fastopt

project = "fastopt"
author = "The fastopt developers"
copyright = author  # noqa: A001
version = release = fastopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",  # for its role "autolink"
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
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
autodoc_mock_imports = ["torch"]  # fastopt.torch alone imports it
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True  # autodoc makes the entries of attributes
napoleon_use_rtype = False
napoleon_use_param = False

html_theme = "furo"
html_title = f"fastopt {release}"
html_static_path = ["_static"]
html_css_files = ["fastopt.css"]
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. "  # is not copied, nor is the output
copybutton_prompt_is_regexp = True
html_math_renderer = "mathml"  # formulas need neither a script nor a network


def setup(app: Any) -> None:
    def clear(*event: Any) -> None:
        lines = event[-1]
        if lines and lines[0].startswith("Alias for field number"):
            lines.clear()  # the docstring of a named tuple describes its fields

    app.connect("autodoc-process-docstring", clear)
