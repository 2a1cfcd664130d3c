"""``prism upload``: put a saved model on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    upload = commands.add_parser(
        "upload",
        help="put a saved model on the Hugging Face Hub",
        description="Put a saved model, its card and what it knows of its training crystals on the Hub. "
        "Log in before with `hf auth login`, or set HF_TOKEN.",
    )
    upload.add_argument("model", help="folder of a saved model, such as RUN/model")
    upload.add_argument("repository", metavar="OWNER/NAME", help="is made if it is missing")
    upload.add_argument("--private", action="store_true", help="only its owner sees a repository that is made")


def run(arguments: argparse.Namespace) -> None:
    """Upload, and print the address."""
    from prism_plugin.pretrained.hub import upload

    print(upload(arguments.model, arguments.repository, arguments.private))
