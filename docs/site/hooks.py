"""What the site has beyond the files of docs/: a page of the commands, made from their own help, and the models' cards.

Links to files outside of docs/, which a repository's viewer follows, lead to these pages or become plain names.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_CARD = re.compile(r"\]\((?:\.\./)+prism_plugin/pretrained/([\w-]+)/README\.md\)")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:examples|tests|prism_plugin|benchmarks)/[^)]*)\)")
_CARDS = Path(__file__).parents[2] / "prism_plugin" / "pretrained"
_WIDTH = "100"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    files.append(File.generated(config, "commands.md", content=_commands()))
    for card in sorted(_CARDS.glob("*/README.md")):
        files.append(File.generated(config, f"models/{card.parent.name}.md", content=card.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to pages of the site, or to nothing."""
    up = "../" * page.file.src_uri.count("/")
    return _OUTSIDE.sub(r"\1 (`\2`)", _CARD.sub(rf"]({up}models/\1.md)", markdown))


def _commands() -> str:
    from prism_plugin.cli import COMMANDS

    os.environ["COLUMNS"] = _WIDTH
    parser = argparse.ArgumentParser(prog="prism")
    subparsers = parser.add_subparsers()
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    parts = ["# Commands\n\nEach explains itself with `--help`; this page is made of that."]
    parts += [f"## prism {name}\n\n```text\n{one.format_help()}```" for name, one in subparsers.choices.items()]
    return "\n\n".join(parts) + "\n"
