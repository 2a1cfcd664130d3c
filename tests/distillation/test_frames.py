"""Frames: each kind is what it says, what is refused is counted, and a job depends on its number alone."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.shards import FRAMES_PER_JOB
from prism_plugin.distillation import frames
from prism_plugin.distillation.frames import FrameMaker
from prism_plugin.distillation.moves import closest_ratio, displaced, strained, with_defect, with_short_distance
from prism_plugin.distillation.parents import Parents, balanced_order, read_parents
from prism_plugin.distillation.paths import dynamics, relaxation, settled
from prism_plugin.distillation.prototypes import BINARY, ELEMENTAL, enlarged, prototype, slab
from prism_plugin.distillation.teacher import Teacher

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")


@pytest.fixture(scope="module")
def parents() -> Parents:
    atoms = tuple(record.atoms for record in emt_alloys(12))
    return Parents(tuple(f"alloy {number}" for number in range(len(atoms))), atoms, {})


@pytest.fixture(scope="module")
def maker(parents) -> FrameMaker:
    return FrameMaker(parents, METALS, seed=3)


def same(one: Atoms, other: Atoms) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in ((one.numbers, other.numbers), (one.positions, other.positions), (one.cell.array, other.cell.array))
    )


def test_strain_keeps_to_its_limits_and_leaves_its_structure() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    before = atoms.copy()
    changes = [
        strained(np.random.default_rng(seed), atoms).get_volume() / atoms.get_volume() - 1 for seed in range(200)
    ]
    assert -0.15 <= min(changes) < -0.08
    assert 0.12 < max(changes) <= 0.20
    assert same(atoms, before)


def test_displacements_are_mostly_small() -> None:
    atoms = bulk("Cu", cubic=True)
    sigmas = [
        float((displaced(np.random.default_rng(seed), atoms).positions - atoms.positions).std()) for seed in range(300)
    ]
    assert 0.03 < np.median(sigmas) < 0.09
    assert max(sigmas) > 0.25


def test_short_distances_are_those_of_covalent_radii() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    ratios = []
    for seed in range(30):
        changed = with_short_distance(np.random.default_rng(seed), atoms)
        assert changed is not None
        ratios.append(closest_ratio(changed, 1.0))
    assert 0.55 < min(ratios) < 0.7
    assert max(ratios) < 0.96
    assert with_short_distance(np.random.default_rng(0), Atoms("He", cell=[9, 9, 9], pbc=True)) is None


def test_defects_take_exchange_or_replace_one_atom() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    kinds = Counter()
    for seed in range(40):
        changed = with_defect(np.random.default_rng(seed), atoms)
        kinds[len(changed), changed.get_chemical_formula()] += 1
    assert set(kinds) == {(7, "Cl3Na4"), (7, "Cl4Na3"), (8, "Cl4Na4"), (8, "Cl3Na5"), (8, "Cl5Na3")}


def test_prototypes_are_built_of_all_structures() -> None:
    rng = np.random.default_rng(0)
    names = {prototype(rng, ("Na", "Cu", "Fe", "O", "Cl", "Xe"))[0].split("-")[0] for _ in range(150)}
    assert names == {*ELEMENTAL, *BINARY, "perovskite"}
    assert {prototype(rng, ("Cu",))[0].split("-")[0] for _ in range(30)} <= set(ELEMENTAL)
    _, atoms = prototype(rng, ("Na", "Cl"))
    assert len(enlarged(bulk("Cu"), 9)) == 8
    assert atoms.pbc.all()


def test_slabs_have_a_vacuum_and_no_more_atoms_than_allowed() -> None:
    rng = np.random.default_rng(1)
    cut = slab(rng, bulk("Cu"), 40)
    assert cut is not None
    assert cut.pbc.all()
    assert cut.cell.lengths()[2] > 10
    assert slab(rng, bulk("Cu", cubic=True), 7) is None


def test_a_prototype_is_settled_at_the_teachers_volume(emt) -> None:
    found = settled(emt, bulk("Cu", a=4.2))
    assert found is not None
    assert found.cell.volume == pytest.approx(bulk("Cu", a=3.59).cell.volume, rel=0.02)
    assert settled(emt, bulk("Cu", a=4.2), steps=1) is None


def test_snapshots_carry_the_labels_of_the_way(emt) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    paths = (dynamics(np.random.default_rng(0), emt, atoms), relaxation(emt, atoms))
    for path in paths:
        snapshots = list(path)
        assert len(snapshots) == FRAMES_PER_JOB - 1
        for state, labels in snapshots:
            again = emt.label(state)
            assert again.energy == pytest.approx(labels.energy, abs=1e-9)
            np.testing.assert_allclose(again.forces, labels.forces, atol=1e-9)
    assert snapshots[-1][1].energy < snapshots[0][1].energy


def test_a_job_depends_on_its_number_alone(maker, parents, emt) -> None:
    jobs = {job: maker.run_job(job, emt) for job in range(12)}
    other = FrameMaker(parents, METALS, seed=3)
    for job in (9, 2, 4):
        again = other.run_job(job, emt)
        assert [frame.kind for frame in again.frames] == [frame.kind for frame in jobs[job].frames]
        assert all(same(a.atoms, b.atoms) for a, b in zip(again.frames, jobs[job].frames, strict=True))
        assert all(
            np.array_equal(a.labels.forces, b.labels.forces)
            for a, b in zip(again.frames, jobs[job].frames, strict=True)
        )
    moved = FrameMaker(parents, METALS, seed=4).run_job(2, emt)
    assert not same(moved.frames[-1].atoms, jobs[2].frames[-1].atoms)


def test_each_number_is_a_frame_or_a_refusal(maker, emt) -> None:
    for job in (0, 4, 7):
        result = maker.run_job(job, emt)
        numbers = [frame.number for frame in result.frames] + [number for number, _ in result.refused]
        assert sorted(numbers) == list(range(job * FRAMES_PER_JOB, (job + 1) * FRAMES_PER_JOB))
        assert len({frame.parent for frame in result.frames}) <= 1
        assert all(len(frame.atoms) <= 40 for frame in result.frames)


@pytest.mark.parametrize(
    ("limit", "reason"), [("MOST_FORCE", "a force above 0.5 eV/Å"), ("MOST_STRESS", "a stress above 0.5 eV/Å^3")]
)
def test_refusals_say_why(maker, emt, monkeypatch, limit, reason) -> None:
    monkeypatch.setattr(frames, limit, 0.5)
    reasons = sum((maker.run_job(job, emt).reasons() for job in range(8)), Counter())
    assert reasons[reason] > (3 if limit == "MOST_FORCE" else 0)


def test_a_teacher_that_fails_or_is_not_finite_is_a_refusal(wrong) -> None:
    alloys = (bulk("Cu") * (5, 1, 1), bulk("Cu") * (3, 1, 1))
    parents = Parents(("fails", "not finite"), alloys, {})
    with Teacher("wrong:Weak", path=wrong) as teacher:
        reasons = sum((FrameMaker(parents, ("Cu",), 0).run_job(job, teacher).reasons() for job in range(4)), Counter())
    assert reasons["the teacher fails"] + reasons["not finite"] == 4
    assert reasons["first frame refused"] == 16


def test_parents_are_the_training_crystals_that_the_teacher_knows(tmp_path) -> None:
    crystal = {"lattice": np.diag([3, 3, 3]).tolist(), "species": ["Cu"], "frac_coords": [[0, 0, 0]]}
    rows = [
        {"id": "a", "split": "train"},
        {"id": "b", "split": "val"},
        {"id": "c", "split": "train", "species": ["Fe"]},
        {"id": "d", "pbc": False},
    ]
    path = tmp_path / "crystals.jsonl"
    path.write_text("\n".join(json.dumps({**crystal, **row}) for row in rows))
    found = read_parents(path, ("Cu",), 40)
    assert found.names == ("a",)
    assert sum(found.left_out.values()) == 3
    with pytest.raises(ValueError, match=r"no structure can be a parent.*does not know"):
        read_parents(path, ("Al",), 40)
    with pytest.raises(FileNotFoundError, match="no structures"):
        read_parents(tmp_path / "none.jsonl", ("Cu",), 40)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"crystals.jsonl, line 1"):
        read_parents(path, ("Cu",), 40)


def test_rare_elements_come_first() -> None:
    crystals = [bulk("Cu")] * 400 + [bulk("AuCu", "cesiumchloride", a=3)] * 4
    order = balanced_order(crystals, 0)
    assert sorted(order) == list(range(404))
    assert {400, 401, 402, 403} <= set(order[:80])
    assert not np.array_equal(order, balanced_order(crystals, 1))
