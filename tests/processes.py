"""Processes of their own without the seconds of imports.

Most of the time of a short run goes into importing torch, Lightning and matgl. A server that has imported them once
forks here for every run; what runs has its own memory, signals, environment, output and exit status. Where the import
itself is the matter, a test starts Python.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["prism_plugin.cli", "prism_plugin.training", "prism_plugin.calculators", "matbench.bench"]
)


def empty_picture(figure: Figure, path: object, *arguments: object, **named: object) -> None:
    """Write an empty file in place of a picture that nobody looks at."""
    Path(str(path)).touch()


class Started:
    """A process that was started; ``stdout`` and ``stderr`` are what it has written so far."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.process = process
        self.pid: int = process.pid
        self._folder = folder
        atexit.register(process.kill)  # a test that failed meanwhile leaves nothing behind that is waited for

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal where one ended it; None while it runs."""
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        """Return what it has printed."""
        return (self._folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """Return its errors."""
        return (self._folder / "stderr").read_text(errors="replace")

    def wait(self, seconds: float | None = None) -> Started:
        """Wait for its end; after some seconds, end it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self


def start(arguments: Sequence[object], cwd: str | Path | None = None, **environment: str) -> Started:
    """Start what ``python ARGUMENTS`` starts: a script, ``-m MODULE`` or ``-c CODE``."""
    folder = Path(tempfile.mkdtemp(prefix="process-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    process = _SERVER.Process(
        target=_run,
        args=(list(map(str, arguments)), str(folder), str(cwd or Path.cwd()), {**os.environ, **environment}),
    )
    process.start()
    return Started(process, folder)


def run(arguments: Sequence[object], cwd: str | Path | None = None, **environment: str) -> Started:
    """Start it and wait for its end."""
    return start(arguments, cwd, **environment).wait()


def _run(arguments: list[str], folder: str, cwd: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        setattr(sys, name, os.fdopen(number, "w", encoding=encoding, buffering=1, closefd=False))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Figure.savefig = empty_picture
    warnings.resetwarnings()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # as python -c does
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
