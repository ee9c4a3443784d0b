"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "pytest-kvm"
author = "The pytest-kvm authors"
version = release = installed_version("pytest-kvm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"pytest-kvm {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Fields stand below the class; what a handle is made of is nobody's business.
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpicky = True
nitpick_ignore_regex = [
    # Only our own names are checked: an inventory of somebody else's would need the network.
    (r"py:.*", r"(?!pytest_kvm).*"),
    # A private base class is no page of its own.
    (r"py:class", r".*\._\w+"),
]
