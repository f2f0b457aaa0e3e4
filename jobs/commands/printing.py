"""How commands print: labelled lines, or tables as wide as the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 160
"""Characters of a table that goes to a file or a pipe."""


def print_lines(lines: Iterable[tuple[str, str]], file: TextIO | None = None) -> None:
    """One line for each label and its text; to the standard output, unless another file is given."""
    for label, text in lines:
        print(f"{label:<9}{text}".rstrip(), file=file)


def console() -> Console:
    """The standard output, for tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
