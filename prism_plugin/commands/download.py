"""``prism download``: fetch a model from the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    download = commands.add_parser(
        "download",
        help="fetch a model from the Hugging Face Hub",
        description="Fetch a model from the Hugging Face Hub into a folder. All that takes a model also takes "
        "OWNER/NAME itself and keeps a copy where matgl keeps its own.",
    )
    download.add_argument("repository", metavar="OWNER/NAME")
    download.add_argument("--out", required=True, type=Path, help="folder; must not exist, or be empty")


def run(arguments: argparse.Namespace) -> None:
    """Download, and print the folder."""
    from prism_plugin.pretrained.hub import download

    print(download(arguments.repository, arguments.out))
