"""Data sets by name in their upstream formats, downloads that fail, folders of structures, splits, graphs on disk."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import random
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from prism_plugin.data import (
    DATASETS,
    GraphDataset,
    Record,
    assign_splits,
    load_named,
    matbench_files,
    read_records,
    split_records,
)
from prism_plugin.data import (
    datasets as named,
)
from prism_plugin.data.datasets import published_split
from prism_plugin.data.download import fetch
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.json_stream import stream_json
from prism_plugin.data.matbench_files import matbench_folds, write_matbench_file
from prism_plugin.graph import store
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import CrystalGraph
from tests.conftest import crystal_zoo


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty folder for downloads, and no way to the network."""
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "home"))
    monkeypatch.delenv("MATMINER_DATA", raising=False)
    return tmp_path / "home"


# --- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server: path -> (status, promised length, body)."""
    pages: dict[str, tuple[int, int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            status, length, body = pages.get(self.path, (404, 0, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield pages, f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
    thread.join()


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_download_is_whole_and_kept(server, tmp_path) -> None:
    pages, url = server
    body = bytes(range(256)) * 9000
    pages["/a.bin"] = (200, len(body), body)
    path = fetch(f"{url}/a.bin", tmp_path / "deep" / "a.bin", hashlib.sha256(body).hexdigest())
    assert path.read_bytes() == body
    pages.clear()  # it is not fetched again
    assert fetch(f"{url}/a.bin", path, hashlib.sha256(body).hexdigest()) == path


def test_a_failed_download_says_so_and_leaves_nothing(server, tmp_path) -> None:
    pages, url = server
    archive = zipped(data="x" * 100_000)
    half = archive[: len(archive) // 2]
    pages["/short.zip"] = (200, len(archive), half)  # the line breaks
    pages["/cut.zip"] = (200, len(half), half)  # the server's file is damaged
    pages["/broken"] = (500, 0, b"")
    pages["/other"] = (200, 3, b"abc")
    for page, kind, message in (
        (
            "/short.zip",
            OSError,
            "the download of short.zip failed .*try again, or fetch .* by other means",
        ),
        ("/cut.zip", ValueError, "damaged or truncated archive .*cut.zip"),
        ("/nowhere", OSError, "404"),
        ("/broken", OSError, "500"),
        ("/other", ValueError, "wrong SHA-256 .* where 00ff is expected, in the download of other"),
    ):
        with pytest.raises(kind, match=message):
            fetch(url + page, tmp_path / page[1:], "00ff" if page == "/other" else None)
    with pytest.raises(OSError, match="the download of x failed"):
        fetch("http://127.0.0.1:1/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_that_is_there_is_refused_and_kept(tmp_path) -> None:
    (tmp_path / "mine.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"mine\.zip: delete it, and it will be fetched again"):
        fetch("http://127.0.0.1:1/mine.zip", tmp_path / "mine.zip")
    with pytest.raises(ValueError, match="wrong SHA-256"):
        fetch("http://127.0.0.1:1/mine.zip", tmp_path / "mine.zip", "0" * 64)
    assert (tmp_path / "mine.zip").read_bytes() == b"no archive"


# --- JARVIS and Materials Project -----------------------------------------------------------------------------------


def jarvis_atoms(atoms: Atoms, cartesian: bool) -> dict:
    """The ``atoms`` of a JARVIS row, as ``jarvis.core.atoms.Atoms.to_dict`` writes them."""
    return {
        "lattice_mat": atoms.cell.array.tolist(),
        "coords": (atoms.positions if cartesian else atoms.get_scaled_positions(wrap=False)).tolist(),
        "elements": list(atoms.symbols),
        "abc": atoms.cell.lengths().tolist(),
        "angles": atoms.cell.angles().tolist(),
        "cartesian": cartesian,
        "props": [""] * len(atoms),
    }


def jarvis_rows(count: int) -> tuple[list[dict], list[Record]]:
    records = emt_alloys(count)
    rows = [
        {
            "jid": f"JVASP-{number}",
            "atoms": jarvis_atoms(record.atoms, cartesian=number % 2 == 0),
            "formation_energy_peratom": record.target,
            "optb88vdw_bandgap": 0.0,
            "mbj_bandgap": "na" if number % 3 else 1.5 + number,
            "optb88vdw_total_energy": -3.25,
            "ehull": 0.125,
        }
        for number, record in enumerate(records)
    ]
    return rows, records


def put_jarvis(home: Path, member: str, rows: list[dict]) -> None:
    (home / "jarvis").mkdir(parents=True)
    (home / "jarvis" / f"{member}.zip").write_bytes(zipped(**{member: json.dumps(rows)}))


def test_jarvis_is_read_from_its_own_file_in_its_published_split(home) -> None:
    rows, records = jarvis_rows(40)
    put_jarvis(home, "jdft_3d-8-18-2021.json", rows)
    parts = load_named("jarvis", "formation_energy")
    assert {part: len(found) for part, found in parts.items()} == {"train": 32, "val": 4, "test": 4}
    order = list(range(40))
    random.seed(123)
    random.shuffle(order)  # as ALIGNN and CartNet do, on the global generator
    assert [record.name for record in parts["train"]] == [f"JVASP-{number}" for number in order[:32]]
    assert [record.name for record in parts["test"]] == [f"JVASP-{number}" for number in order[-4:]]
    for record in parts["val"]:
        original = records[int(record.name.split("-")[1])]
        assert record.target == original.target
        np.testing.assert_allclose(record.atoms.positions, original.atoms.positions, atol=1e-12)
        assert list(record.atoms.symbols) == list(original.atoms.symbols)
        assert record.atoms.pbc.all()
    gaps = [record for part in load_named("jarvis", "band_gap_mbj").values() for record in part]
    assert len(gaps) == 14  # rows with "na" are left out
    assert {record.target for record in gaps} == {1.5 + number for number in range(0, 40, 3)}
    assert load_named("jarvis", "e_hull")["test"][0].target == 0.125


def test_materials_project_moduli_are_logarithms(home) -> None:
    rows = [
        {
            "id": f"mp-{number}",
            "atoms": jarvis_atoms(record.atoms, True),
            "e_form": record.target,
            "gap pbe": 0.0,
            "bulk modulus": {0: float("nan"), 1: "na", 2: 0.0, 3: -5.0}.get(number % 7, 100.0),
            "shear modulus": 10.0,
        }
        for number, record in enumerate(emt_alloys(70))
    ]
    put_jarvis(home, "megnet.json", rows)  # json.dumps writes NaN, and so does upstream
    parts = load_named("mp2018", "bulk_modulus")
    assert sum(len(found) for found in parts.values()) == 30  # what has no logarithm is left out
    assert {record.target for record in parts["train"]} == {2.0}
    assert load_named("mp2018", "shear_modulus")["val"][0].target == 1.0


def test_published_splits_have_the_published_sizes() -> None:
    atoms = bulk("Cu")
    records = [Record(atoms, 0.0, str(number)) for number in range(69_239)]
    sizes = {part: len(found) for part, found in named._split_mp(records, 0, 0).items()}
    assert sizes == {"train": 60_000, "val": 5_000, "test": 4_239}
    parts = published_split(records[:55_723], 0.1, 0.1)
    assert {part: len(found) for part, found in parts.items()} == {"train": 44_579, "val": 5_572, "test": 5_572}
    assert len({record.name for part in parts.values() for record in part}) == 55_723
    with pytest.raises(ValueError, match="5 crystals with this target are too few"):
        published_split(records[:5], 0.1, 0.1)


def test_a_file_of_another_version_or_a_damaged_one_is_named(home) -> None:
    rows, _ = jarvis_rows(20)
    del rows[3]["ehull"]
    rows[5]["atoms"]["elements"][0] = "Xx"
    put_jarvis(home, "jdft_3d-8-18-2021.json", rows)
    with pytest.raises(ValueError, match="row 'JVASP-3' of jarvis lacks the column 'ehull'"):
        load_named("jarvis", "e_hull")
    with pytest.raises(ValueError, match="crystal 'JVASP-5' of jarvis: 'Xx'"):
        load_named("jarvis", "formation_energy")
    path = home / "jarvis" / "jdft_3d-8-18-2021.json.zip"
    path.write_bytes(zipped(**{"jdft_3d-8-18-2021.json": json.dumps([{**rows[0], "ehull": "low"}])}))
    with pytest.raises(ValueError, match="row 'JVASP-0' of jarvis: ehull is no number: 'low'"):
        load_named("jarvis", "e_hull")
    path.write_bytes(zipped(**{"other.json": "[]"}))
    with pytest.raises(ValueError, match=r"does not hold jdft_3d-8-18-2021\.json"):
        load_named("jarvis", "e_hull")
    del rows[5]
    path.write_bytes(zipped(**{"jdft_3d-8-18-2021.json": json.dumps(rows)[:-40]}))
    with pytest.raises(ValueError, match=r"json\.zip: it ends too early"):
        load_named("jarvis", "band_gap_opt")
    path.write_bytes(zipped(**{"jdft_3d-8-18-2021.json": '[{"name": "no jid"}]'}))
    with pytest.raises(ValueError, match="is not in the expected format"):
        load_named("jarvis", "band_gap_opt")


def test_names_of_sets_targets_and_folds_are_checked() -> None:
    for arguments, message in (
        (("jarvis2", "e_hull"), "no data set 'jarvis2'; choose one of: emt-alloys, emt-alloys-pes, jarvis"),
        (("jarvis", "gap"), "no target 'gap' there; choose one of: formation_energy"),
        (("matbench_jdft2d", "exfoliation_energy"), r"has 5 folds, 0 to 4 \(--fold\); fold is None"),
        (("matbench_jdft2d", "exfoliation_energy", 5), r"has 5 folds, 0 to 4 \(--fold\); fold is 5"),
        (("emt-alloys", "formation_energy", 1), "has one split and no folds"),
    ):
        with pytest.raises(ValueError, match=message):
            load_named(*arguments)


# --- Matbench -------------------------------------------------------------------------------------------------------


def put_matbench(folder: Path, monkeypatch, task: str, values: list, order: str = "index columns data") -> list[Atoms]:
    """Write a data frame as upstream does, and tell matminer's loader the hash."""
    crystals = [record.atoms for record in emt_alloys(len(values))]
    path = folder / f"matbench_{task}.json.gz"
    records = [Record(atoms, value, "") for atoms, value in zip(crystals, values, strict=True)]
    write_matbench_file(f"matbench_{task}", records, path)
    frame = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps({key: frame[key] for key in order.split()}).encode()))
    from matminer.datasets import dataset_retrieval

    known = dataset_retrieval._load_dataset_dict()
    known[f"matbench_{task}"]["hash"] = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(dataset_retrieval, "_dataset_dict", known)
    return crystals


@pytest.mark.parametrize("order", ["index columns data", "columns data index"])
def test_matbench_is_read_in_its_official_folds(home, monkeypatch, order) -> None:
    values = [float(number) for number in range(53)]
    crystals = put_matbench(home / "matminer", monkeypatch, "jdft2d", values, order)
    tested = []
    for fold, (train, test) in enumerate(matbench_folds(53)):
        parts = load_named("matbench_jdft2d", "exfoliation_energy", fold, seed=4)
        assert [record.target for record in parts["test"]] == test.tolist()
        together = sorted(record.target for part in ("train", "val") for record in parts[part])
        assert together == train.tolist()
        assert len(parts["val"]) == len(train) // 10
        tested += [record.name for record in parts["test"]]
    assert sorted(tested) == [f"mb-jdft2d-{number:02d}" for number in range(1, 54)]
    again = load_named("matbench_jdft2d", "exfoliation_energy", 0, seed=4)
    other = load_named("matbench_jdft2d", "exfoliation_energy", 0, seed=5)
    first = load_named("matbench_jdft2d", "exfoliation_energy", 0, seed=4)
    assert [r.name for r in again["val"]] == [r.name for r in first["val"]] != [r.name for r in other["val"]]
    record = again["test"][0]
    np.testing.assert_allclose(record.atoms.positions, crystals[int(record.target)].positions, atol=1e-12)


def test_the_folds_of_a_classification_are_stratified(home, monkeypatch) -> None:
    values = [number % 5 == 0 for number in range(50)]
    put_matbench(home / "matminer", monkeypatch, "mp_is_metal", values)
    for fold in range(5):
        assert sum(record.target for record in load_named("matbench_mp_is_metal", "is_metal", fold)["test"]) == 2


def test_a_matbench_file_with_another_hash_is_refused(home, monkeypatch) -> None:
    put_matbench(home / "matminer", monkeypatch, "phonons", [1.0] * 12)
    path = home / "matminer" / "matbench_phonons.json.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"wrong SHA-256 .*delete it, and it will be fetched again from https://"):
        load_named("matbench_phonons", "last_phdos_peak", 0)
    with pytest.raises(ValueError, match="truncated, damaged or not compressed"):
        list(matbench_files.read_frame(path))
    assert path.read_bytes() == whole[:-20]
    monkeypatch.setenv("MATMINER_DATA", str(home / "elsewhere"))
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / path.name).write_bytes(whole)
    assert len(load_named("matbench_phonons", "last_phdos_peak", 0)["test"]) == 3


def test_json_is_read_in_pieces(monkeypatch) -> None:
    class Drip(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            return super().read(7)

    rows = [{"a": [1, 2.5, None], "b": "täg ] , }"}, {}, {"deep": {"x": float("inf")}}]
    assert [item for _, item in stream_json(Drip(json.dumps(rows, indent=1)))] == rows
    whole = {"columns": ["a"], "data": rows, "index": [0, 1, 2]}
    found = list(stream_json(Drip(json.dumps(whole)), inside="data"))
    assert found == [("columns", ["a"]), *((None, row) for row in rows), ("index", [0, 1, 2])]
    assert list(stream_json(Drip("[]"))) == []
    for text, message in (("", "too early"), ("[{}, ", "too early"), ("{}", "'{' stands where"), ("[{} {}]", "is due")):
        with pytest.raises(ValueError, match=message):
            list(stream_json(Drip(text)))


# --- folders and splits ---------------------------------------------------------------------------------------------


def test_a_folder_with_id_prop_is_read(tmp_path) -> None:
    zoo = {"a": bulk("NaCl", "rocksalt", a=5.6), "b": bulk("Cu"), "c": crystal_zoo()["low symmetry"], "d": bulk("Si")}
    write(tmp_path / "a.cif", zoo["a"])
    write(tmp_path / "POSCAR-b.vasp", zoo["b"])
    write(tmp_path / "c.xyz", zoo["c"], format="extxyz")
    write(tmp_path / "d.cif", zoo["d"])
    (tmp_path / "id_prop.csv").write_text("a,1.5\nPOSCAR-b.vasp, -2\n\nc.xyz,3e-1\nd.cif,4\n")
    records = read_records(tmp_path, "gap")
    assert [(record.name, record.target) for record in records] == [
        ("a", 1.5),
        ("POSCAR-b.vasp", -2.0),
        ("c.xyz", 0.3),
        ("d.cif", 4.0),
    ]
    for record, atoms in zip(records, zoo.values(), strict=True):
        ours, theirs = build_graph(record.atoms), build_graph(atoms)
        assert ours.edge_index.shape == theirs.edge_index.shape
        np.testing.assert_allclose(ours.edge_distance.sort()[0], theirs.edge_distance.sort()[0], atol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,1\nb,2\n", r"id_prop\.csv, line 2: there is no 'b' and no 'b\.cif'"),
        ("a\n", "line 1: a file and a target are needed, got 'a'"),
        ("a,1,2\n", "a file and a target are needed"),
        ("a,high\n", r"line 1 \(a\.cif\): the target 'gap' is no number: 'high'"),
        ("a,\n", "none of the 1 rows has the target"),
        ("bad.cif,1\n", r"bad\.cif cannot be read: there is no structure in it"),
        ("bad.vasp,1\n", r"bad\.vasp cannot be read"),
        ("bad.xyz,1\n", r"bad\.xyz, frame 1: a number of atoms is due"),
    ],
)
def test_a_bad_folder_is_named(tmp_path, table, message) -> None:
    write(tmp_path / "a.cif", bulk("Cu"))
    for suffix in ("cif", "vasp", "xyz"):
        (tmp_path / f"bad.{suffix}").write_text("hello\n")
    with pytest.raises(ValueError, match=r"has no id_prop\.csv"):
        read_records(tmp_path, "gap")
    (tmp_path / "id_prop.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path, "gap")


@pytest.mark.parametrize("key", ["{}", "id_{}"])
def test_a_file_of_names_splits_records(tmp_path, key) -> None:
    records = emt_alloys(12)
    names = [record.name for record in records]
    listed = {"train": names[2:9], "val": names[:2], "test": names[9:11]}
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({key.format(part): some for part, some in listed.items()}))
    parts = split_records(assign_splits(records, path))
    assert {part: [record.name for record in found] for part, found in parts.items()} == listed
    for text, message in (
        ('{"train": ["nobody"]}', "1 names are in no record, for example nobody"),
        (json.dumps({"train": names, "val": names[:1]}), "1 names are listed twice"),
        ("[1, 2]", "no JSON object with lists"),
        ("{", "no JSON object with lists"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            assign_splits(records, path)


# --- graphs in arrays -----------------------------------------------------------------------------------------------


def same_graphs(mine: CrystalGraph, right: CrystalGraph) -> None:
    for field in dataclasses.fields(right.crystals):
        ours, theirs = getattr(mine.crystals, field.name), getattr(right.crystals, field.name)
        if isinstance(theirs, torch.Tensor | np.ndarray):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), field.name
            assert ours.dtype == theirs.dtype, field.name
        else:
            assert ours == theirs


def test_stored_graphs_are_the_built_ones(tmp_path) -> None:
    records = [Record(atoms, 0.0, name) for name, atoms in crystal_zoo().items()]
    for cache in (None, tmp_path):
        graphs = GraphDataset(records, 3.5, 8.0, progress=False, cache=cache).graphs
        assert len(graphs) == len(records)
        for index, record in enumerate(records):
            same_graphs(graphs[index], build_graph(record.atoms, 3.5, 8.0))
        same_graphs(graphs[-1], build_graph(records[-1].atoms, 3.5, 8.0))
        assert [len(graph) for graph in graphs[2:5]] == [len(record.atoms) for record in records[2:5]]
        with pytest.raises(IndexError):
            graphs[len(records)]
        graphs[0].positions.zero_()  # a copy: the store stays whole
        same_graphs(graphs[0], build_graph(records[0].atoms, 3.5, 8.0))
    assert len(GraphDataset([], 3.5, 8.0, progress=False)) == 0


def test_a_cache_is_found_by_crystals_and_cutoffs_and_a_damaged_one_is_made_anew(tmp_path, monkeypatch) -> None:
    records = emt_alloys(5)
    built = []
    real = store.build_graph
    monkeypatch.setattr(store, "build_graph", lambda *arguments: built.append(1) or real(*arguments))

    def count(some, cutoff=3.5) -> int:
        built.clear()
        graphs = GraphDataset(some, cutoff, 8.0, progress=False, cache=tmp_path).graphs
        same_graphs(graphs[1], real(some[1].atoms, cutoff, 8.0))
        return len(built)

    assert count(records) == 5
    assert count(records) == 0
    assert count([dataclasses.replace(record, target=1.0) for record in records]) == 0  # targets are not in it
    assert count(records, 3.0) == 5
    moved = [dataclasses.replace(record, atoms=record.atoms.copy()) for record in records]
    moved[2].atoms.positions[0, 0] += 1e-9
    assert count(moved) == 5
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        (folder / "positions.bin").write_bytes(b"short")
    assert count(records) == 5
    assert count(records) == 0
    with pytest.raises(ValueError, match="crystal 'bad'"):
        GraphDataset([*records, Record(Atoms("Cu2", cell=[3, 3, 3], pbc=True), 0.0, "bad")], 3.5, 8.0, cache=tmp_path)
    assert sorted(path for path in tmp_path.iterdir() if path.is_dir()) == sorted(folders)  # and nothing half-written


@pytest.mark.slow
def test_worker_processes_build_the_same_graphs(tmp_path, monkeypatch) -> None:
    records = emt_alloys(30)
    alone = GraphDataset(records, 3.5, 8.0, progress=False).graphs
    monkeypatch.setattr(store, "_PARALLEL_FROM", 2)
    monkeypatch.setattr(store, "_CHUNK", 7)
    monkeypatch.setattr(store, "cpu_count", lambda: 2)
    together = GraphDataset(records, 3.5, 8.0, progress=False, cache=tmp_path).graphs
    for mine, right in zip(together, alone, strict=True):
        same_graphs(mine, right)
    bad = Record(Atoms("Cu2", cell=[3, 3, 3], pbc=True), 0.0, "bad")
    with pytest.raises(ValueError, match="crystal 'bad': atoms 0 and 1 lie on top"):
        GraphDataset([*records, bad], 3.5, 8.0, progress=False)


def test_every_data_set_has_targets_with_units() -> None:
    assert set(DATASETS) >= {"jarvis", "mp2018", "emt-alloys", "matbench_mp_e_form", "matbench_jdft2d"}
    assert len([name for name in DATASETS if name.startswith("matbench_")]) == 9
    for data in DATASETS.values():
        assert data.targets
        assert data.about
    parts = load_named("emt-alloys", "formation_energy", seed=3)
    assert {part: len(found) for part, found in parts.items()} == {"train": 480, "val": 60, "test": 60}
