"""Files that are written aside, and tables that lost their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from prism_plugin import files


@pytest.mark.parametrize("block", [1, 3, 1 << 16])
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"a\nb\ncut", b"a\nb\n"), (b"a\nb\n", b"a\nb\n"), (b"no line", b""), (b"", b""), (b"\n", b"\n")],
)
def test_what_stands_behind_the_last_line_is_cut(
    before: bytes, after: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", block)
    path = tmp_path / "table.csv"
    path.write_bytes(before)
    files.truncate_after_last_line(path)
    assert path.read_bytes() == after
