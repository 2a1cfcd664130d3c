"""``prism upload`` and ``prism download``: models to the Hugging Face Hub and from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["VERBS"]


class _Upload:
    @staticmethod
    def add_parser(commands: Any) -> None:
        upload = commands.add_parser(
            "upload",
            help="put a saved model on the Hugging Face Hub",
            description="Put a saved model, its card and what it knows of its training crystals on the Hub. "
            "Log in before with `hf auth login`, or set HF_TOKEN.",
        )
        upload.add_argument("model", help="folder of a saved model, such as RUN/model")
        upload.add_argument("repository", metavar="OWNER/NAME", help="is made if it is missing")
        upload.add_argument("--private", action="store_true", help="only its owner sees a repository that is made")

    @staticmethod
    def run(arguments: argparse.Namespace) -> None:
        from prism_plugin.pretrained.hub import upload

        print(upload(arguments.model, arguments.repository, arguments.private))


class _Download:
    @staticmethod
    def add_parser(commands: Any) -> None:
        download = commands.add_parser(
            "download",
            help="fetch a model from the Hugging Face Hub",
            description="Fetch a model from the Hugging Face Hub into a folder. All that takes a model also takes "
            "OWNER/NAME itself and keeps a copy where matgl keeps its own.",
        )
        download.add_argument("repository", metavar="OWNER/NAME")
        download.add_argument("--out", required=True, type=Path, help="folder; must not exist, or be empty")

    @staticmethod
    def run(arguments: argparse.Namespace) -> None:
        from prism_plugin.pretrained.hub import download

        print(download(arguments.repository, arguments.out))


VERBS: dict[str, Any] = {"upload": _Upload, "download": _Download}
