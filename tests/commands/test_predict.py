"""prism predict, evaluate, scaling and info: streams, restarts, bad files, several processes, reports."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from prism_plugin import PRISM, PRISMCalculator, cli
from prism_plugin.data import read_structure_file
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.sources import iterate_structures
from prism_plugin.edge_counts import count_edges, fit_edges
from prism_plugin.graph.build import build_graph
from prism_plugin.prediction import predict_files
from prism_plugin.pretrained import COMMITTEE, load, saved_metadata
from tests.conftest import small_model


@pytest.fixture
def files(tmp_path):
    """Structures in files of every kind, some of them bad."""
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "a.cif", bulk("NaCl", "rocksalt", a=5.64))
    (folder / "b.cif").write_text("this is no crystal\n")
    write(folder / "c.vasp", bulk("MgO", "rocksalt", a=4.2))
    write(folder / "d.extxyz", [bulk("Cu"), bulk("Al"), bulk("Si")])
    rows = [
        {"lattice": [[3, 0, 0], [0, 3, 0], [0, 0, 3]], "species": ["Fe"], "frac_coords": [[0, 0, 0]]},
        {"lattice": [[3, 0, 0], [0, 3, 0], [0, 0, 3]], "species": ["Fe", "Fe"], "frac_coords": [[0, 0, 0], [0, 0, 0]]},
        {"species": ["Fe"]},
        {"lattice": [[3, 0, 0], [0, 3, 0], [0, 0, 3]], "species": ["Rn"], "frac_coords": [[0, 0, 0]]},
    ]
    (folder / "e.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (folder / "g.jsonl.gz").write_text("not compressed")
    (folder / "f.extxyz").write_text((folder / "d.extxyz").read_text() + "what is this\n")
    return folder


def read(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_structure_has_a_row_and_a_bad_one_a_reason(files, tmp_path) -> None:
    out = tmp_path / "table.csv"
    counts = predict_files([files, tmp_path / "nowhere.cif"], "prism-mp2018-eform", out, progress=False, batch_size=3)
    rows = read(out)
    assert counts == {"predicted": 9, "kept": 0, "failed": 7}
    values = [f"formation_energy{suffix} (eV/atom)" for suffix in ("", "_68", "_95")]
    assert list(rows[0]) == ["name", "formula", "atoms", *values, "novelty", "warnings", "error"]
    formulas = [row["formula"] for row in rows if not row["error"]]
    assert formulas == ["NaCl", "MgO", "Cu", "Al", "Si", "Fe", "Cu", "Al", "Si"]
    model = load()
    value = float(rows[0]["formation_energy (eV/atom)"])
    assert value == pytest.approx(float(model.predict_structure(bulk("NaCl", "rocksalt", a=5.64))), abs=1e-5)
    reasons = {row["name"].removeprefix(f"{files}/"): row["error"] for row in rows if row["error"]}
    for name, reason in {
        "b.cif": "b.cif cannot be read: there is no structure in it",
        "e.jsonl#2": "atoms 0 and 1 lie on top of each other",
        "e.jsonl#3": "'frac_coords' is neither a key of the row nor an element",
        "e.jsonl#4": "unknown element Rn",
        "f.extxyz#4": "the rest of this file was not read",
        "g.jsonl.gz#1": "Not a gzipped file",
        str(tmp_path / "nowhere.cif"): "no such file",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons


def test_an_interrupted_table_goes_on_and_ends_the_same(files, tmp_path) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    value, *others = [f"formation_energy{suffix} (eV/atom)" for suffix in ("", "_68", "_95")]
    predict_files([files], "prism-mp2018-eform", whole, progress=False, batch_size=2)
    for end in (-3, 300):
        cut.write_bytes(whole.read_bytes()[:end])  # killed while it wrote a row
        cut.with_name("cut.csv.model.json").write_text(whole.with_name("whole.csv.model.json").read_text())
        counts = predict_files([files], "prism-mp2018-eform", cut, progress=False, batch_size=2)
        assert 0 < counts["kept"] < len(read(whole))
        # Every row as before; only the last digits of a float32, of numbers of about 1, depend on its batch.
        for ours, before in zip(read(cut), read(whole), strict=True):
            for column, apart in ((value, 2e-6), *((other, 2e-3) for other in (*others, "novelty"))):
                number, same = ours.pop(column), before.pop(column)
                assert (number == same == "") or float(number) == pytest.approx(float(same), abs=apart, rel=apart)
            assert ours == before
    failed = sum(bool(row["error"]) for row in read(whole))
    again = predict_files([files], "prism-mp2018-eform", cut, progress=False)
    assert again == {"predicted": 0, "kept": len(read(whole)) - failed, "failed": failed}


def test_what_was_kept_of_a_file_that_has_changed_is_named(files, tmp_path) -> None:
    for name in ("one.cif", "two.cif"):
        write(tmp_path / name, bulk("NaCl", "rocksalt", a=5.64))
    write(tmp_path / "some.extxyz", [bulk("Cu"), bulk("Al")])
    out = tmp_path / "t.csv"
    predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)
    predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)  # silent
    later = out.stat().st_mtime + 1
    for name in ("two.cif", "some.extxyz"):
        os.utime(tmp_path / name, (later, later))
    with pytest.warns(UserWarning, match=r"some\.extxyz#1 and 2 more: the file was written after the table"):
        counts = predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)
    assert counts == {"predicted": 0, "kept": 4, "failed": 0}


def test_a_table_knows_its_model(files, tmp_path, capsys) -> None:
    small_model(target="gap", unit="eV").save(tmp_path / "model")
    out = tmp_path / "t.csv"
    assert cli.main(["predict", str(files / "a.cif"), "--out", str(out), "--model", str(tmp_path / "model")]) == 0
    assert "1 predicted, 0 were there already, 0 failed" in capsys.readouterr().out
    assert "gap (eV)" in read(out)[0]
    assert cli.main(["predict", str(files / "a.cif"), "--out", str(out)]) == 2
    assert "exists and is no table of this model; give another --out" in capsys.readouterr().err
    assert len(read(out)) == 1
    precious = tmp_path / "precious.csv"
    precious.write_text("mine\n")
    assert cli.main(["predict", str(files / "a.cif"), "--out", str(precious)]) == 2
    assert precious.read_text() == "mine\n"
    precious.with_name("precious.csv.model.json").write_text(out.with_name("t.csv.model.json").read_text())
    model = ["--model", str(tmp_path / "model")]
    assert cli.main(["predict", str(files / "a.cif"), "--out", str(precious), *model]) == 2
    assert precious.read_text() == "mine\n"
    for wrong, message in (
        (["--devices", "0"], "must be at least 1"),
        (["--device", "cuda"], "no CUDA"),
        (["--model", "x"], "no model 'x'"),
    ):
        assert cli.main(["predict", str(files / "a.cif"), "--out", str(tmp_path / "new.csv"), *wrong]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new.csv").exists()


def test_a_committee_has_a_column_for_its_spread(files, tmp_path, capsys) -> None:
    for number, cutoff in enumerate((3.0, 3.0, 3.4)):
        torch.manual_seed(number)
        elements = ("Na", "Cl", "Mg", "O", "Cu", "Al", "Si")
        PRISM(elements, dim=8, num_layers=1, cutoff=cutoff, unit="eV/atom", target="e").save(tmp_path / f"m{number}")
    folders = [tmp_path / f"m{number}" for number in range(3)]
    out = tmp_path / "t.csv"
    options = [option for folder in folders for option in ("--model", str(folder))]
    assert cli.main(["predict", str(files), "--out", str(out), *options]) == 0
    assert "8 predicted" in capsys.readouterr().out
    rows = read(out)
    assert list(rows[0]) == ["name", "formula", "atoms", "e (eV/atom)", "e_std (eV/atom)", "warnings", "error"]
    assert {row["e_std (eV/atom)"] for row in rows if row["error"]} == {""}
    (right,) = PRISMCalculator(folders).predict([read_structure_file(files / "a.cif")])
    assert rows[0]["formula"] == "NaCl"
    assert float(rows[0]["e (eV/atom)"]) == pytest.approx(right["energy"] / 2, rel=1e-5)
    assert float(rows[0]["e_std (eV/atom)"]) == pytest.approx(right["energy_std"] / 2, rel=1e-4)
    assert all(float(row["e_std (eV/atom)"]) > 0 for row in rows if not row["error"])
    # In another order they are the same committee.
    failed = sum(bool(row["error"]) for row in rows)
    again = predict_files([files], folders[::-1], out, progress=False)
    assert again == {"predicted": 0, "kept": 8, "failed": failed}
    assert read(out) == rows
    # Another committee's table; the same model twice; another property; none.
    assert cli.main(["predict", str(files), "--out", str(out), *options[:4]]) == 2
    assert "is no table of this model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a model is given twice"):
        predict_files([files], [folders[0], folders[0]], tmp_path / "new.csv")
    with pytest.raises(TypeError, match="give the name or folder of a model"):
        predict_files([files], None, tmp_path / "new.csv")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="the models predict different things"):
        predict_files([files], [folders[0], "prism-mp2018-gap"], tmp_path / "new.csv")
    with pytest.raises(ValueError, match="the list of models is empty"):
        predict_files([files], [], tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()


def test_nothing_predicted_is_an_error(files, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for number, (given, message) in enumerate(
        [
            (tmp_path / "nowhere", "no structure was predicted: see the table"),
            (files / "b.cif", "no structure was predicted: see the table"),
            (tmp_path / "empty", "no structure was predicted: see the table"),
        ]
    ):
        assert cli.main(["predict", str(given), "--out", str(tmp_path / f"{number}.csv")]) == 2
        assert message in capsys.readouterr().err


def test_files_are_read_as_a_stream(tmp_path) -> None:
    stream = iterate_structures(tmp_path / f"{number}.cif" for number in count())
    assert [next(stream)[0] for _ in range(3)] == [str(tmp_path / f"{number}.cif") for number in range(3)]
    write(tmp_path / "many.extxyz", [bulk("Cu")] * 50)
    opened = iterate_structures([tmp_path / "many.extxyz"])
    assert [next(opened)[0] for _ in range(2)] == [f"{tmp_path / 'many.extxyz'}#{number}" for number in (1, 2)]


def test_a_file_that_is_given_twice_is_one_row(files, tmp_path) -> None:
    paths = [files / "a.cif", files, files / "a.cif"]
    names = [name for name, _ in iterate_structures(paths)]
    assert names[0] == str(files / "a.cif")
    assert sorted(names) == sorted(name for name, _ in iterate_structures([files]))


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(files, tmp_path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    predict_files([files], COMMITTEE, one, progress=False, batch_size=2)
    command = [sys.executable, "-m", "prism_plugin.cli", "predict", str(files), "--out", str(two)]
    command += [option for name in COMMITTEE for option in ("--model", name)]
    result = subprocess.run(
        [*command, "--devices", "2", "--batch-size", "2"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for mine, right in zip(read(two), read(one), strict=True):
        assert [mine[key] for key in ("name", "formula", "error")] == [
            right[key] for key in ("name", "formula", "error")
        ]
        for key in ("formation_energy (eV/atom)", "formation_energy_std (eV/atom)"):
            assert (mine[key] == "") == (right[key] == "")
            if right[key]:
                assert float(mine[key]) == pytest.approx(float(right[key]), abs=1e-5)


# --- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
def test_evaluate_scores_a_file_or_a_part(tmp_path, capsys) -> None:
    records = emt_alloys(30)
    frames = []
    for record in records:
        record.atoms.info.update(e=record.target, id=record.name)
        frames.append(record.atoms)
    write(tmp_path / "alloys.extxyz", frames)
    small_model(target="e", unit="eV/atom").save(tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "alloys.extxyz")]
    assert cli.main([*command, "--out", str(tmp_path / "all")]) == 0
    printed = capsys.readouterr().out
    rows = read(tmp_path / "all" / "predictions.csv")
    assert len(rows) == 30
    error = [abs(float(row["prediction"]) - float(row["target"])) for row in rows]
    assert f"{np.mean(error):9.4f}" in printed
    assert (tmp_path / "all" / "parity.png").stat().st_size > 10_000
    assert (tmp_path / "all" / "elements.png").stat().st_size > 10_000
    assert cli.main([*command, "--part", "val", "--out", str(tmp_path / "val")]) == 0
    assert len(read(tmp_path / "val" / "predictions.csv")) == 3
    # the split of the training, whose seed the model keeps: no crystal of its training part is scored
    sizes = ["--set", "dim=8", "--set", "num_layers=1", "--epochs", "1", "--seed", "5", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "--data", str(tmp_path / "alloys.extxyz"), "--target", "e", *sizes]) == 0
    own = ["evaluate", "--model", str(tmp_path / "run" / "model"), "--data", str(tmp_path / "alloys.extxyz")]
    assert cli.main([*own, "--part", "test", "--out", str(tmp_path / "own")]) == 0
    assert cli.main([*own, "--out", str(tmp_path / "run")]) == 2  # the run's own predictions stay
    trained = {row["name"]: row["split"] for row in read(tmp_path / "run" / "predictions.csv")}
    assert {trained[row["name"]] for row in read(tmp_path / "own" / "predictions.csv")} == {"test"}
    assert cli.main([*command, "--part", "dev", "--out", str(tmp_path / "dev")]) == 2
    assert "no part 'dev'; choose one of: train, val, test" in capsys.readouterr().err
    poor = ["evaluate", "--data", str(tmp_path / "alloys.extxyz"), "--target", "gap", "--out", str(tmp_path / "gap")]
    assert cli.main(poor) == 2
    assert "none of the 30 rows has the target 'gap'" in capsys.readouterr().err


# --- scaling --------------------------------------------------------------------------------------------------------


def test_edges_are_counted_per_expert_and_layer() -> None:
    model = small_model(num_layers=2)
    structures = [
        bulk("Cu"),
        bulk("NaCl", "rocksalt", a=5.6),
        bulk("Cu", cubic=True),
        bulk("NaCl", "rocksalt", a=5.6) * 2,
    ]
    counts = count_edges(structures, model, progress=False)
    for index, atoms in enumerate(structures):
        graph = build_graph(atoms, model.cutoff, model.cell_cutoff)
        assert counts["atoms"][index] == len(atoms)
        assert counts["atomistic"][index] == graph.edge_index.shape[1]
        assert counts["cell"][index] == len(graph.cell_image)
        assert counts["multiscale"][index] == 2 * len(atoms)
    # equal atoms are similar in the first layer whatever the weights: all pairs of one element
    of_first = counts["similarity 1"]
    assert of_first[0] == 0
    assert of_first[2] == 4 * 3
    total = counts["atomistic"] + counts["cell"] + counts["multiscale"]
    total = total + (counts["similarity 1"] + counts["similarity 2"]) / 2
    np.testing.assert_allclose(counts["total"], total)
    fits = fit_edges(counts)
    assert fits["multiscale"]["slope"] == pytest.approx(2)
    assert fits["multiscale"]["intercept"] == pytest.approx(0, abs=1e-9)
    assert fits["cell"]["slope"] < 0
    without = count_edges([bulk("Cu")], small_model(experts=("atomistic",)), progress=False)
    assert "similarity" not in without
    assert np.isnan(fit_edges(without)["atomistic"]["slope"])
    with pytest.raises(ValueError, match="no structure to count"):
        count_edges([], model, progress=False)


@pytest.mark.usefixtures("pictures")
def test_prism_scaling_writes_table_fits_and_picture(tmp_path, capsys) -> None:
    line = np.arange(6)[:, None] * [2.5, 0, 0]
    frames = [Atoms("Cu" * n, positions=line[:n], cell=[2.5 * n, 5, 5], pbc=True) for n in range(1, 7)]
    write(tmp_path / "chains.extxyz", frames)
    command = ["scaling", str(tmp_path / "chains.extxyz"), "--crystals", "5", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| multiscale \| 2.00 \| 2.00 N [+-]0 \| 2.00 N \| 2.00 N \| 2 N \|", printed)
    assert len(read(tmp_path / "out" / "edges.csv")) == 5
    assert json.loads((tmp_path / "out" / "fits.json").read_text())["multiscale"]["per_atom"] == 2
    assert (tmp_path / "out" / "edges.png").stat().st_size > 20_000
    assert cli.main(command) == 0  # its own are replaced
    capsys.readouterr()
    (tmp_path / "out" / "edges.csv").unlink()
    assert cli.main(command) == 2
    assert "has another fits.json, which would be replaced; give another folder" in capsys.readouterr().err
    (tmp_path / "bad.cif").write_text("no")
    assert cli.main(["scaling", str(tmp_path / "bad.cif"), "--out", str(tmp_path / "no")]) == 2
    assert "bad.cif cannot be read" in capsys.readouterr().err


# --- info -----------------------------------------------------------------------------------------------------------


def test_the_models_that_ship_are_listed(capsys) -> None:
    assert cli.main(["models"]) == 0
    told = capsys.readouterr().out
    assert "prism-mp2018-gap          band_gap          0.2333 eV " in told
    assert "CC BY 4.0" in told


def test_info_on_what_is_here_and_on_models(tmp_path, capsys) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (f"torch {torch.__version__}", "matgl", "prism-mp2018-eform", "jarvis:", "matbench_jdft2d", "muon"):
        assert word in text
    assert cli.main(["info", "prism-mp2018-eform"]) == 0
    text = capsys.readouterr().out
    mae = saved_metadata("prism-mp2018-eform")["scores"]["val"]["mae"]
    weights = sum(weight.numel() for weight in load("prism-mp2018-eform").parameters())
    experts = "experts = ('atomistic', 'cell', 'multiscale')"
    for word in ("formation_energy (eV/atom)", f"parameters  {weights:,}", f"MAE {mae:.4f}", experts):
        assert word in text
    small_model().save(tmp_path / "all")
    assert cli.main(["info", str(tmp_path / "all")]) == 0
    assert "atoms       layer 1: atomistic 0." in capsys.readouterr().out
    small_model(fusion="gated").save(tmp_path / "gated")
    assert cli.main(["info", str(tmp_path / "gated")]) == 0
    assert "target      target (no unit), mean over the atoms" in capsys.readouterr().out
    assert cli.main(["info", "nothing"]) == 2
    assert "no model 'nothing'" in capsys.readouterr().err


def test_a_file_of_several_goes_on_where_it_was_cut(tmp_path) -> None:
    """A CIF is read by a worker, which alone knows how many structures it has."""
    for name in ("one.cif", "two.cif"):
        write(tmp_path / name, bulk("NaCl", "rocksalt", a=5.64))
    text = (tmp_path / "two.cif").read_text()
    (tmp_path / "two.cif").write_text(text + text.replace("Na", "K"))
    out = tmp_path / "t.csv"
    predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)
    whole = out.read_text()
    names = [Path(row["name"]).name for row in read(out)]
    assert names == ["one.cif", "two.cif#1", "two.cif#2"]
    out.write_text(whole[: whole.rindex("\n", 0, -1) + 1])
    again = predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)
    assert again == {"predicted": 1, "kept": 2, "failed": 0}
    assert [row["formula"] for row in read(out)] == ["NaCl", "NaCl", "KCl"]


def test_what_does_not_fit_into_memory_is_a_row(tmp_path, monkeypatch) -> None:
    crystals = [bulk("Cu"), bulk("Cu", cubic=True), bulk("Al"), bulk("NaCl", "rocksalt", a=5.64)]
    write(tmp_path / "some.extxyz", crystals)
    right = PRISMCalculator("prism-mp2018-eform").predict(crystals)
    forward = PRISM.forward

    def small_only(self, g, *arguments, **named):
        if g.sizes[:, 0].max() > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return forward(self, g, *arguments, **named)

    monkeypatch.setattr(PRISM, "forward", small_only)
    counts = predict_files([tmp_path / "some.extxyz"], "prism-mp2018-eform", tmp_path / "t.csv", progress=False)
    assert counts == {"predicted": 3, "kept": 0, "failed": 1}
    rows = read(tmp_path / "t.csv")
    assert "one structure of 4 atoms does not fit into memory: DefaultCPUAllocator" in rows[1]["error"]
    for number in (0, 2, 3):
        energy = right[number]["energy"] / len(crystals[number])
        assert float(rows[number]["formation_energy (eV/atom)"]) == pytest.approx(energy, abs=1e-5)
    with pytest.raises(MemoryError, match="one structure of 4 atoms does not fit into memory"):
        load().predict_structure(crystals)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda text: text + "\n\n", 0, ""),
        (lambda text: text + "a,b\n", 2, "has 2 cells in place of"),
        (lambda text: text.replace("Cu", "C\udcff"), 2, "was changed and cannot be read"),
    ],
    ids=["blank", "short", "bytes"],
)
def test_a_table_that_an_editor_changed(
    change: Callable[[str], str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save(tmp_path / "model")
    write(tmp_path / "s.cif", bulk("Cu"))
    table = tmp_path / "t.csv"
    command = ["predict", str(tmp_path / "s.cif"), "--model", str(tmp_path / "model"), "--out", str(table)]
    assert cli.main(command) == 0
    table.write_text(change(table.read_text()), encoding="utf-8", errors="surrogateescape")
    capsys.readouterr()
    assert cli.main(command) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "", "/"])
def test_a_folder_is_no_table(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    small_model().save("model")
    write("s.cif", bulk("Cu"))
    assert cli.main(["predict", "s.cif", "--model", "model", "--out", out]) == 2
    assert "is a folder: give the name of a CSV file" in capsys.readouterr().err
