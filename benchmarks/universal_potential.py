"""A universal potential beside the teacher that it has learned from and beside DFT; writes a JSON and two pictures.

    python benchmarks/universal_potential.py --model RUN/model --teacher FOLDER --teacher-path DIR --labels LABELS \
        --mlearn DIR --crystals mp2018_train_val.jsonl.xz --moduli mp_elastic_train.jsonl.xz --out FOLDER
    python benchmarks/universal_potential.py --out FOLDER --install RUN --labels LABELS    # puts it into the package

Parts: ``labels`` (the teacher's own, of crystals in no training frame), ``forces`` (energies and forces of mlearn's
configurations, DFT-PBE, element by element), ``relax`` (crystals of the validation part from cells scaled by up to 2
% and atoms moved by 0.03 Å, FIRE and a Frechet cell filter, fmax 0.05 eV/Å), ``elastic`` (K and G by matcalc),
``speed`` (CPU time of energy, forces and stress, in turn, medians), ``nve`` (drift over 2 ps), ``phonons``. What a
part has found of one of the two is kept; the same command goes on, and ``--who teacher`` finds what is the teacher's
before there is a model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress
from matplotlib.figure import Figure
from tqdm import tqdm

from prism_plugin import PRISMCalculator, load, pretrained
from prism_plugin.data import PES, read_records, split_records
from prism_plugin.data.records import count_crystals
from prism_plugin.distillation.teacher import Teacher, TeacherCalculator, TeacherError
from prism_plugin.errors import PrismError
from prism_plugin.figures import save_figure
from prism_plugin.files import replaced, write_json
from prism_plugin.simulation import DynamicsSettings, relax_one, run_dynamics
from prism_plugin.simulation.properties import elastic_constants, phonons
from prism_plugin.tasks.plots import plot_elements
from prism_plugin.tasks.potential import score_potential
from prism_plugin.tasks.scores import rms
from prism_plugin.training.plots import plot_learning_curve, read_log

PARTS = ("labels", "forces", "relax", "phonons", "speed", "nve", "elastic")
HERE = Path(__file__).parent
FOLDER = Path(pretrained.__file__).parent
DOCS = HERE.parent / "docs" / "potential" / "universal"
LICENCE = "BSD-3-Clause; crystals of Materials Project, CC BY 4.0; labels by TensorNet-MatPES-PBE-v2025.1, BSD-3-Clause"
CALM = 0.5  # eV/Å; root mean square of the forces of a calm frame
COLORS = {"teacher": "#8da0cb", "PRISM": "#d95f02"}
SIMPLE = {
    "Si": bulk("Si", a=5.46),
    "NaCl": bulk("NaCl", "rocksalt", a=5.69),
    "Cu": bulk("Cu", a=3.63),
    "MgO": bulk("MgO", "rocksalt", a=4.25),
    "GaAs": bulk("GaAs", "zincblende", a=5.75),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", default=[], help="the potential; repeated: a committee")
    add("--teacher")
    add("--teacher-path", type=Path)
    add("--labels", type=Path, help="what prism label wrote")
    add("--mlearn", type=Path, help="folder of ELEMENT_train.extxyz.xz")
    add("--crystals", type=Path, help="crystals with a split")
    add("--moduli", type=Path, help="crystals with K_vrh, G_vrh")
    add("--count", type=int, default=60, help="crystals of relax and elastic")
    add("--max-atoms", type=int, default=24, help="of these")
    add("--parts", nargs="+", default=PARTS, choices=PARTS)
    add("--who", choices=COLORS, help="one of the two")
    add("--install", type=Path, metavar="RUN", help="put this run's model into the package, with its card and pictures")
    add("--out", type=Path, required=True)
    return parser.parse_args()


def labels(given: argparse.Namespace, name: str, calculator: PRISMCalculator) -> dict[str, Any]:
    """Errors against the teacher on its frames of the test part: all, calm ones, forces by element."""
    parts = split_records(read_records(given.labels, PES))
    answered = {
        part: list(zip(parts[part], calculator.predict([one.atoms for one in parts[part]]), strict=True))
        for part in ("val", "test")
    }

    def scored(chosen: list[tuple[Any, Any]]) -> dict[str, Any]:
        sizes = np.array([len(record.atoms) for record, _ in chosen])
        right, mine = zip(*chosen, strict=True)
        stresses = np.array([voigt_6_to_full_3x3_stress(answer["stress"]) for answer in mine])
        return score_potential(
            (np.array([one.target for one in right]) / sizes, np.array([one["energy"] for one in mine]) / sizes),
            (np.concatenate([one.forces for one in right]), np.concatenate([one["forces"] for one in mine])),
            (np.array([one.stress for one in right]), stresses),
        )

    of_test = answered["test"]
    numbers = np.concatenate([record.atoms.numbers for record, _ in of_test])
    errors = np.concatenate([np.abs(answer["forces"] - record.forces).mean(axis=1) for record, answer in of_test])
    each = [np.array([number]) for number in numbers]
    plot_elements(each, errors, "force", "eV/Å", "frames of the test part", given.out / "elements.png", "atoms")
    symbols = np.array(chemical_symbols)[numbers]
    return {
        "val": scored(answered["val"]),
        "all": scored(of_test),
        "calm": scored([(record, answer) for record, answer in of_test if rms(record.forces) < CALM]),
        "forces by element": {
            symbol: float(errors[symbols == symbol].mean()) for symbol in np.unique(symbols).tolist()
        },
    }


def forces(given: argparse.Namespace, name: str, calculator: Calculator) -> dict[str, Any]:
    """RMSE of energies (meV/atom, after a shift: DFT codes count from elsewhere) and of forces (eV/Å)."""
    found: dict[str, Any] = {}
    for path in sorted(given.mlearn.glob("*_train.extxyz*")):
        element = path.name.split("_")[0]
        records = read_records(path, PES)[::4]
        differences, squares = [], []
        for record in tqdm(records, f"{element} {name}"):
            atoms = record.atoms.copy()
            atoms.calc = calculator
            differences.append((atoms.get_potential_energy() - record.target) / len(atoms))
            squares.append(np.square(atoms.get_forces() - record.forces).mean())
        found[element] = {
            "configurations": len(records),
            "energy": 1000 * float(np.std(differences)),
            "forces": float(np.sqrt(np.average(squares, weights=[len(record.atoms) for record in records]))),
        }
    return found


def chosen(records: list[Any], given: argparse.Namespace, seed: int) -> list[Any]:
    """A random choice of crystals that are not too large."""
    small = [record for record in records if len(record.atoms) <= given.max_atoms]
    order = np.random.default_rng(seed).permutation(len(small))[: given.count]
    return [small[index] for index in order]


def relaxations(given: argparse.Namespace, name: str, calculator: Calculator) -> dict[str, Any]:
    """Relative change of the volume against DFT's, in %, of each crystal; None where it is lost."""
    records = chosen([one for one in read_records(given.crystals, "e_form") if one.split == "val"], given, 0)
    rng = np.random.default_rng(1)
    changes: dict[str, float | None] = {}
    unfinished = 0
    for record in tqdm(records, f"relax {name}"):
        atoms = record.atoms.copy()
        atoms.set_cell(atoms.cell.array * rng.uniform(0.98, 1.02), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        try:
            done = relax_one(atoms, calculator)
        except (PrismError, TeacherError):
            changes[record.name] = None
            continue
        unfinished += not done.is_converged
        changes[record.name] = 100 * (done.atoms.get_volume() / record.atoms.get_volume() - 1)
    known = np.abs([change for change in changes.values() if change is not None])
    return {
        "changes": changes,
        "median": float(np.median(known)),
        "beyond 10 %": int((known > 10).sum()),
        "lost": len(records) - len(known),
        "not converged": unfinished,
    }


def moduli(given: argparse.Namespace, name: str, calculator: Calculator) -> dict[str, Any]:
    """K and G (GPa) beside DFT's: median and mean of the absolute errors, and how many were lost."""
    records = chosen(read_records(given.moduli, "K_vrh"), given, 0)
    shear = {record.name: record.target for record in read_records(given.moduli, "G_vrh")}
    values: list[Any] = []
    for record in tqdm(records, f"elastic {name}"):
        try:
            moduli = elastic_constants(record.atoms, calculator, given.out / "elastic" / name, fmax=0.05)
            values.append([moduli["bulk modulus (GPa)"], moduli["shear modulus (GPa)"]])
        except (PrismError, TeacherError):
            values.append(None)
    right = [[record.target, shear[record.name]] for record in records]
    pairs = np.array([(dft, mine) for dft, mine in zip(right, values, strict=True) if mine is not None])
    errors = np.abs(pairs[:, 1] - pairs[:, 0])
    return {
        "DFT": right,
        "values": values,
        "median error of K and G (GPa)": np.median(errors, axis=0).tolist(),
        "mean error of K and G (GPa)": errors.mean(axis=0).tolist(),
        "lost": sum(value is None for value in values),
    }


def speed(given: argparse.Namespace, calculators: dict[str, Calculator]) -> dict[str, Any]:
    """Time of energy, forces and stress, s, one thread each, in turn; medians of seven."""
    found: dict[str, Any] = {}
    for atoms in (bulk("NaCl", "rocksalt", a=5.69, cubic=True), *(bulk("Si", cubic=True, a=5.46) * n for n in (2, 4))):
        times: dict[str, list[float]] = {name: [] for name in calculators}
        for turn in range(8):
            for name, calculator in calculators.items():
                moved = atoms.copy()
                moved.rattle(0.05, seed=turn)
                moved.calc = calculator
                started = time.perf_counter()
                moved.get_forces(), moved.get_stress()
                times[name].append(time.perf_counter() - started)
        found[str(len(atoms))] = {name: float(np.median(values[1:])) for name, values in times.items()}
    return found


def drift(given: argparse.Namespace, name: str, calculator: Calculator) -> dict[str, Any]:
    """Change of the total energy over 2 ps at 300 K, meV/atom."""
    settings = DynamicsSettings("nve", temperature=600, timestep=1.0, steps=2000, every=10)
    found = {}
    for material, atoms in SIMPLE.items():
        done = run_dynamics(atoms.repeat(3), calculator, settings, given.out / "nve" / material, progress=True)
        found[material] = {"drift (meV/atom in 2 ps)": 2 * done["drift"], "temperature": done["temperature"]}
    return found


def vibrations(given: argparse.Namespace, name: str, calculator: Calculator) -> dict[str, Any]:
    """Highest and lowest frequency, THz."""
    found: dict[str, Any] = {}
    for material in ("Si", "NaCl", "Cu"):
        folder = given.out / "phonons" / f"{material}-{name}"
        done = phonons(SIMPLE[material], calculator, folder, fmax=1e-3, min_length=12)
        found[material] = {key: done[key] for key in list(done)[:2]}
    return found


WORK = {
    "labels": labels,
    "forces": forces,
    "relax": relaxations,
    "elastic": moduli,
    "nve": drift,
    "phonons": vibrations,
}


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw the changes of volumes, and the moduli beside DFT's."""
    if "relax" in found:
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        panel = figure.subplots()
        for name, color in COLORS.items():
            changes = [change for change in found["relax"][name]["changes"].values() if change is not None]
            panel.hist(np.clip(changes, -20, 20), bins=np.linspace(-20, 20, 41), color=color, alpha=0.7, label=name)
        panel.set(xlabel="change of the volume against DFT (%)", ylabel="crystals")
        panel.legend(frameon=False)
        save_figure(figure, out / "relaxations.png")
    if "elastic" in found:
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        for index, (panel, title) in enumerate(zip(figure.subplots(1, 2), ("bulk", "shear"), strict=True)):
            right = np.array(found["elastic"]["PRISM"]["DFT"])[:, index]
            for name, color in COLORS.items():
                mine = [np.nan if value is None else value[index] for value in found["elastic"][name]["values"]]
                panel.scatter(right, mine, s=12, color=color, label=name)
            panel.plot([0, right.max()], [0, right.max()], color="0.5", linewidth=1)
            panel.set(
                xlabel="DFT (GPa)", ylabel="potential (GPa)", title=f"{title} modulus", ylim=(0, 1.2 * right.max())
            )
            panel.legend(frameon=False)
        save_figure(figure, out / "moduli.png")


def install(given: argparse.Namespace, found: dict[str, Any]) -> None:
    """Put the model of a run into the package, with its card, and its pictures into docs/."""
    name = pretrained.DEFAULT_POTENTIAL
    model = load(given.install / "model")
    parts = split_records(read_records(given.labels, PES))
    settings = json.loads((given.install / "settings.json").read_text())
    for key in ("data", "crystals"):  # fingerprints
        settings.pop(key, None)
    seen = count_crystals(parts["train"])
    metadata = {
        "settings": settings,
        "scores": {"val": found["labels"]["PRISM"]["val"], "test": found["labels"]["PRISM"]["all"]},
        "rare_elements": {symbol: count for symbol, count in sorted(seen.items()) if count < pretrained.RARE},
        "licence": LICENCE,
    }
    model.save(FOLDER / name, metadata=metadata)
    of_element = sorted(found["labels"]["PRISM"]["forces by element"].items(), key=lambda item: item[1])
    shown = ", ".join(f"{symbol} {error:.2f}" for symbol, error in of_element[:10])
    worst = ", ".join(f"{symbol} {error:.2f}" for symbol, error in of_element[-10:])
    text = (HERE / "universal_potential_card.md").read_text()
    card = text.format(
        name=name,
        parameters=sum(weight.numel() for weight in model.parameters()),
        frames=len(parts["train"]),
        elements=len(model.element_types),
        cutoff=model.cutoff,
        settings=json.dumps(settings),
        best=shown,
        worst=worst,
        table=table(found),
        **{f"{kind}_{key}": value for kind in ("all", "calm") for key, value in found["labels"]["PRISM"][kind].items()},
    )
    with replaced(FOLDER / name / "README.md") as path:
        path.write_text(card)
    DOCS.mkdir(parents=True, exist_ok=True)
    for picture in given.out.glob("*.png"):
        shutil.copy(picture, DOCS / picture.name)
    curves = read_log(given.install / "log", "loss")
    plot_learning_curve(curves, "loss", "loss", metadata["scores"]["val"], DOCS / "learning_curve.png")


def table(found: dict[str, Any]) -> str:
    """Return the figures of student and teacher side by side, a Markdown table."""
    mine, its = (figures(found, name) for name in ("PRISM", "teacher"))
    rows = [f"| {what} | {value} | {its.get(what, '')} |" for what, value in mine.items()]
    return "\n".join(["| | PRISM | teacher |", "|---|---|---|", *rows])


def figures(found: dict[str, Any], name: str) -> dict[str, str]:
    """Return what was found of one of the two, by what it is."""
    of = {part: values[name] for part, values in found.items() if name in values}
    told = {
        f"{element}, DFT frames of mlearn: RMSE of forces, eV/Å": f"{one['forces']:.3f}"
        for element, one in of.get("forces", {}).items()
    }
    if "relax" in of:
        one = of["relax"]
        told["relaxed crystals: median change of the volume against DFT"] = f"{one['median']:.2f} %"
        counts = [str(one[key]) for key in ("beyond 10 %", "lost", "not converged")]
        told[f"of {len(one['changes'])}: beyond 10 %, lost, not converged"] = ", ".join(counts)
    if "elastic" in of:
        errors = of["elastic"]["median error of K and G (GPa)"]
        told["moduli K, G: median error against DFT, GPa"] = ", ".join(f"{error:.1f}" for error in errors)
        pairs = zip(of["elastic"]["values"], of["elastic"]["DFT"], strict=True)
        shares = [np.divide(value, right) for value, right in pairs if value is not None]
        medians = (f"{100 * share:.0f}" for share in np.median(shares, axis=0))
        told["moduli K, G: median share of DFT's, %"] = ", ".join(medians)
    for material, frequencies in of.get("phonons", {}).items():
        texts = [f"{round(frequency, 2) + 0.0:.2f}" for frequency in frequencies.values()]
        told[f"{material}: highest and lowest phonon, THz"] = ", ".join(texts)
    for material, one in of.get("nve", {}).items():
        told[f"{material}, NVE: drift, meV/atom in 2 ps"] = f"{one['drift (meV/atom in 2 ps)']:.3f}"
    for atoms, times in found.get("speed", {}).items():
        told[f"energy, forces, stress of {atoms} atoms, ms"] = f"{1000 * times[name]:.0f}"
    return told


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "results.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if given.install is not None:
        install(given, found)
        return
    with Teacher(given.teacher, path=given.teacher_path) as teacher:
        calculators: dict[str, Calculator] = {"teacher": TeacherCalculator(teacher)}
        if given.model:
            models = given.model if len(given.model) > 1 else given.model[0]
            calculators["PRISM"] = PRISMCalculator(models, device="cpu")
        asked = {name: calculators[name] for name in ([given.who] if given.who else COLORS)}
        for part in given.parts:
            if part == "speed":
                if part not in found and len(asked) == len(COLORS):
                    found[part] = speed(given, calculators)
                    write_json(kept, found)
                continue
            for name, calculator in asked.items():
                is_asked = name == "PRISM" or part not in ("labels", "nve")
                if is_asked and name not in found.setdefault(part, {}):
                    found[part][name] = WORK[part](given, name, calculator)
                    write_json(kept, found)
    if given.who is None:
        draw(found, given.out)
    for part, values in found.items():
        print(part, json.dumps(values, indent=1)[:3000])


if __name__ == "__main__":
    main()
