"""Settings of the documentation site; `make docs` builds it into docs/_build/html, and a warning is an error."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mtsp import __version__  # noqa: E402

project = "mtsp"
author = "the mtsp maintainers"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

highlight_language = "bash"
default_role = "code"  # in docstrings, as in Markdown, `name` is code

html_theme = "furo"
html_title = f"mtsp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "


def setup(app: Sphinx) -> None:
    """Read |x| in docstrings as an absolute value, which to Sphinx is a substitution."""

    def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        lines[:] = [line if "`" in line else line.replace("|", r"\|") for line in lines]

    app.connect("autodoc-process-docstring", escape)
