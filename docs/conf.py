"""Sphinx configuration. `make docs` builds with warnings as errors."""

import shutil
from pathlib import Path

import pyro_align

HERE = Path(__file__).parent

# The executed notebooks live beside their text halves in tutorials/; Sphinx wants its sources under docs/.
TUTORIALS = HERE / "tutorials"
shutil.rmtree(TUTORIALS, ignore_errors=True)
TUTORIALS.mkdir()
for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
    shutil.copy(notebook, TUTORIALS)

project = "pyro_align"
author = "The pyro_align developers"
copyright = f"{author}, Apache-2.0"
version = release = pyro_align.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build", "studies/*_table.md"]  # tables are included by their pages
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

html_theme = "furo"
html_title = f"pyro_align {version}"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are executed by tutorials/execute.py and shown as they are

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Every cross-reference inside the package must resolve. Names of other projects are not looked up: the build needs
# no network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_align).*"),
    # inner types that signatures name and that have no page of their own
    (r"py:.*", r"pyro_align\.discovery\.(tracing|walk|axes|rotations|signs\.parity|signs\.analysis)(\..*)?"),
    (r"py:.*", r"pyro_align\.guides\.(pyro_state|features|transport|families\.draws)(\..*)?"),
    (r"py:.*", r"pyro_align\.matching\.(matcher|problem|annealing|enumeration|population|soft)(\..*)?"),
    (r"py:.*", r"pyro_align\.symmetry\.(blocks|action|findings\.(Reason|Why|Resting)|element\._Module)(\..*)?"),
    (r"py:.*", r"pyro_align\.(draws\.carried|losses\.protocol\._L)(\..*)?"),
]
