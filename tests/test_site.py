"""The site: it builds without a warning, and a browser shows it, finds in it, and meets no dead link."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_every_page_says_what_it_is_of(site: Path) -> None:
    pages = {path.parent.relative_to(site).as_posix(): path.read_text() for path in site.rglob("index.html")}
    assert {"tutorials/relax", "reference/models", "commands", "options", "results", "decisions"} <= pages.keys()
    for name, page in pages.items():
        assert re.search(r"<h1[^>]*>.*\w", page), name
        assert not re.search(r":(?:class|func|meth|data):", page), name
    assert "prism relax" in pages["commands"]
    assert "most steps" in pages["reference/simulation"]
    for name in ("prism-mp2018-eform", "prism-mp2018-gap"):
        assert f"models/{name}" in pages


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_shows_every_page_and_finds_words(site: Path, address: str) -> None:
    from playwright.sync_api import sync_playwright

    paths = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    wide, broken = [], []
    with sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})  # a phone
        page.on("pageerror", lambda error: broken.append(str(error)))
        for path in paths:
            answer = page.goto(f"{address}/{path}/")
            assert answer is not None
            assert answer.ok, path
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(path)
            broken += page.evaluate("[...document.images].filter(one => !one.naturalWidth).map(one => one.src)")
        page.goto(f"{address}/?q=phonons")
        page.wait_for_selector(".md-search-result__item", state="attached", timeout=30_000)
        browser.close()
    assert not wide
    assert not broken
