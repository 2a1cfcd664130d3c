"""Files that are written aside, tables that lost their end, and text of several encodings."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from prism_plugin import files


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a\nb\ncut", b"a\nb\n"),
        (b"a\nb\n", b"a\nb\n"),
        (b"no line", b""),
        (b"", b""),
        (b"\n", b"\n"),
        (b'a,1\n"b\nc",2\n"d\ne', b'a,1\n"b\nc",2\n'),  # a line feed within a name ends no record
        (b'a,1\n"b ""c""\nd', b"a,1\n"),
    ],
)
def test_what_stands_behind_the_last_record_is_cut(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(before)
    files.truncate_after_last_record(path)
    assert path.read_bytes() == after


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_whatever_its_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Å\nb\n".encode(encoding))
    (tmp_path / "a.GZ").write_bytes(gzip.compress("Å\nb\n".encode(encoding)))
    for name in ("a.txt", "a.GZ"):
        with files.open_text(tmp_path / name) as file:
            assert file.read() == "Å\nb\n"


def test_text_of_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Å".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8"), files.open_text(tmp_path / "a.txt") as file:
        file.read()


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    def killed(target: Path) -> None:
        with files.replaced(target) as path:
            path.write_text("half")
            shutil.copytree(path.parent, tmp_path / "left")
            name = path.parent.name
        (tmp_path / "left").rename(target.parent / name)

    kept = [tmp_path / "run" / name for name in (".git", ".notes.aside-mine", "model")]
    for folder in kept:
        folder.mkdir(parents=True)
    killed(tmp_path / "run" / "summary.json")
    killed(tmp_path / "run" / "model" / "model.json")
    killed(tmp_path / "a.csv")
    killed(tmp_path / "b.csv")
    assert len(list(tmp_path.glob("**/.*.aside-????????"))) == 4
    files.sweep(tmp_path / "run")
    assert sorted((tmp_path / "run").iterdir()) == [*sorted(kept), tmp_path / "run" / "summary.json"]
    files.sweep(tmp_path, "a.csv")
    assert [left.name.split(".aside")[0] for left in tmp_path.glob(".*.aside-*")] == [".b.csv"]
