"""Test what is printed on a terminal."""

import pytest

from bevreshape.console import print_error, print_line
from bevreshape.reporting.progress import Progress

NAME = "data/:car:/[bold]a[/] 42 'x' " + "long " * 60
"""A path that holds what rich would read as emoji, markup, a number, a string, and more than a line."""


def test_lines_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    print_line(("doubt:", "yellow"), f" {NAME}")
    print_line(NAME, stderr=True)
    print_error(NAME)
    Progress("frames", None).print(NAME)
    out, err = capfd.readouterr()
    assert out == f"doubt: {NAME}\n"
    assert err == f"{NAME}\nerror: {NAME}\n{NAME}\n"
