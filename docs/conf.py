"""The documentation site: python -m sphinx -W -b html docs docs/_build

Pages are read as they are on GitHub, and pages elsewhere in the repository through those of `docs/site/`.
"""

import posixpath
import re
from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "rope-jax"
version = release = installed("rope-jax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"rope-jax {version}"
html_copy_source = False
html_show_copyright = False
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings are written with single backticks.
default_role = "code"
add_module_names = False
maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
napoleon_use_ivar = True
napoleon_attr_annotations = False

FILES = "https://github.com/rope-jax/rope-jax/blob/main/"
ELSEWHERE = {
    "README.md": "index.md",
    "RESULTS.md": "site/results.md",
    "CONTRIBUTING.md": "site/contributing.md",
    "CHANGELOG.md": "site/changelog.md",
    "benchmarks/README.md": "site/benchmarks.md",
}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
# A name that stays one, as a union spells it.
ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
# One shape of an array of JAX or NumPy, as a signature spells it out.
EITHER = re.compile(r"([\w.~]+)\[[\w.~]*Array, ('[^']*')\] \| \1\[[\w.~]*ndarray, \2\]")


def linked(text: str, folder: str) -> str:
    """A page of a folder of the repository, whose links lead to pages of the site, and else to the repository."""

    def target(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path in ELSEWHERE:
            return f"](/{ELSEWHERE[path]}"
        if path.endswith(".png"):
            return f"](/{posixpath.relpath(path, 'docs')}"
        page = path.startswith("docs/") and path.endswith(".md")
        return f"](/{path.removeprefix('docs/')}" if page else f"]({FILES}{path}"

    return LINK.sub(target, text)


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""

    def read(app, docname, source):
        source[0] = linked(source[0], posixpath.dirname(f"docs/{docname}"))

    def included(app, path, parent, source):
        source[0] = linked(source[0], posixpath.normpath(posixpath.join("docs", posixpath.dirname(path.as_posix()))))

    def signature(app, what, name, found, options, *texts):
        def short(text: str) -> str:
            return EITHER.sub(r"\1[AnyArray, \2]", ALIAS.sub(r"\1", text)).replace("jaxlib._jax.", "")

        return tuple(text and short(text) for text in texts)

    app.connect("autodoc-process-signature", signature)
    app.connect("source-read", read)
    app.connect("include-read", included)
