"""Files from the network: whole and checked, or not there at all."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from tqdm import tqdm

from prism_plugin.errors import PrismError
from prism_plugin.files import replaced

__all__ = ["cache_home", "fetch"]

_BLOCK = 1 << 20


def cache_home() -> Path:
    """Folder of downloaded data and graph caches: ``$PRISM_CACHE``, else ``~/.cache/prism-plugin``."""
    return Path(os.environ.get("PRISM_CACHE") or Path.home() / ".cache" / "prism-plugin")


def fetch(url: str, path: str | Path, sha256: str | None = None) -> Path:
    """Return the path of a file; download it where it is missing.

    The download is written aside and moved into place after its length, its hash and, for a ``.zip``, the checksums of
    its members were found right: a failure leaves nothing behind. A file that is there is checked, too, and never
    overwritten.

    Args:
        url: where it comes from.
        path: where it lies, or shall lie.
        sha256: its hash, if one is published.

    Raises:
        OSError: if it cannot be downloaded.
        ValueError: if it is not the right file; says what to do.
    """
    path = Path(path)
    if path.exists():
        _check(path, sha256, f"{path}: delete it, and it will be fetched again from {url}")
        return path
    import requests

    by_hand = f"fetch {url} by other means and put it at {path}"
    with replaced(path) as aside:
        try:
            with requests.get(url, stream=True, timeout=60) as answer, open(aside, "wb") as file:
                answer.raise_for_status()
                size = int(answer.headers.get("content-length", 0))
                with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
                    for block in answer.iter_content(_BLOCK):
                        file.write(block)
                        bar.update(len(block))
        except requests.RequestException as error:
            raise OSError(f"the download of {path.name} failed ({error}); try again, or {by_hand}") from error
        _check(aside, sha256, f"the download of {path.name} from {url}: try again, or {by_hand}")
    return path


def _check(path: Path, sha256: str | None, where: str) -> None:
    """Raise ValueError unless the file has the hash and, if it is a zip, whole members."""
    if sha256 is not None:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if digest.hexdigest() != sha256:
            raise PrismError(f"wrong SHA-256 {digest.hexdigest()} where {sha256} is expected, in {where}")
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError) as error:
            raise PrismError(f"damaged or truncated archive ({error}), in {where}") from error
        if damaged is not None:
            raise PrismError(f"damaged member {damaged!r}, in {where}")
