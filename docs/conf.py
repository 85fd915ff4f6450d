"""Settings of the documentation site, which `scripts/site` builds with Sphinx."""

from astra_rl.distribution import version as installed_version

project = "ASTRA-RL"
author = copyright = "the developers of ASTRA-RL"
release = installed_version()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
html_show_sourcelink = False
myst_heading_anchors = 4

default_role = "py:obj"  # names in docstrings stand in single backticks
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
# Packages of other tools, which bridges import and the environment of the site does not have.
autodoc_mock_imports = ["inspect_ai", "inspect_petri", "openenv", "opentelemetry", "pyrit", "wrapt"]
autodoc_typehints = "none"  # they are in the signatures
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def fenced_as_directives(app, what, name, thing, options, lines):  # type: ignore[no-untyped-def]
    """Turn the fenced code blocks of a docstring into directives."""
    converted = []
    indent: str | None = None
    for line in lines:
        text = line.strip()
        if text.startswith("```"):
            if indent is None:
                indent = line[: len(line) - len(text)]
                converted += [f"{indent}.. code-block:: {text[3:] or 'text'}", ""]
            else:
                indent = None
                converted.append("")
        else:
            converted.append(line if indent is None or not text else f"    {line}")
    lines[:] = converted


def setup(app):  # type: ignore[no-untyped-def]
    """Register the function above."""
    app.connect("autodoc-process-docstring", fenced_as_directives)
