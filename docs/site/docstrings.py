"""Docstrings as the site's generator reads them: Sphinx's roles as names, an example as a section of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Changes what is written before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda found: f"``{found[1].rsplit('.', 1)[-1]}``", obj.docstring.value)
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
