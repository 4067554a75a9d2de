"""The pages of this folder as a site: ``sphinx-build -W -n -b html docs docs/_build``."""

import argparse
import os
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ase_bayesmlip import __version__
from ase_bayesmlip.cli.main import COMMANDS

project = "ase-bayesmlip"
copyright = "the authors of ase-bayesmlip"  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ase-bayesmlip {version}"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # 100 columns of code

# Anchors of headings as code hosts make them.
myst_heading_anchors = 4

# One word in backticks is a name: a link where it is documented, plain code where it is not.
default_role = "py:obj"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# Wrong references are errors, but for names in backticks, for those of libraries, whose inventories
# would be downloads, and for types in signatures that are not public.
INTERNAL = "nn|config.strict|metrics.errors.Frame|metrics.origin.Card|serving.compiled|training"
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    ("py:.*", r"(?!ase_bayesmlip).*"),
    ("py:class", rf"ase_bayesmlip\.({INTERNAL}).*"),
]


class CommandHelp(SphinxDirective):
    """A section for each command with what its ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        """Ask the parsers themselves."""
        os.environ["COLUMNS"], os.environ["NO_COLOR"] = "90", "1"
        commands = argparse.ArgumentParser(prog="bayesmlip").add_subparsers()
        for command in COMMANDS:
            command.add_parser(commands)
        sections: list[nodes.Node] = []
        for name, parser in commands.choices.items():
            section = nodes.section("", nodes.title(text=f"bayesmlip {name}"), ids=[name])
            section += nodes.literal_block(text=parser.format_help(), language="text")
            sections.append(section)
        return sections


def escape_bars(*event: Any) -> None:
    """Keep the bars of |x|, an absolute value here and a substitution in reStructuredText."""
    lines = event[-1]
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line) for line in lines]


def readable_defaults(*event: Any) -> tuple[str, str] | None:
    """Write `...` for the default factories of dataclasses, which no parser of signatures knows."""
    arguments, returned = event[-2:]
    return arguments and (arguments.replace("<factory>", "..."), returned)


def setup(app: Sphinx) -> None:
    """Declare what is above."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-process-signature", readable_defaults)
