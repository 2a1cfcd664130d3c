"""``prism relax``, ``md``, ``eos``, ``elastic``, ``phonons``: what people do with a potential."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_plugin.defaults import DEFAULT_POTENTIAL
from prism_plugin.errors import PrismError

__all__ = ["VERBS", "Verb"]

# Made here, so that the help needs no import that takes seconds: a calculator, the options -> a prism_plugin Run.
_Maker = Callable[[Any, argparse.Namespace], Any]


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        name: of the command.
        about: what it does, for the list of commands.
        output: what it writes beside the table.
        options: name, type, default and help of its own options; a default of None asks for a flag.
        make: makes what is done with each structure.
        dtype: with which the model computes, if the user does not say.
        finish: draws a picture of the table.
    """

    name: str
    about: str
    output: str
    options: Sequence[tuple[str, type, Any, str]]
    make: _Maker
    dtype: str = "float64"
    finish: Callable[[Path], None] | None = None

    def add_parser(self, commands: Any) -> None:
        """Add the command."""
        parser = commands.add_parser(
            self.name,
            help=self.about,
            description=f"{self.about[0].upper()}{self.about[1:]}. OUT gets {self.name}.csv, a row for each structure, "
            f"and {self.output}. The same command goes on after an interruption. A bad structure is a row with a "
            "reason.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        add = parser.add_argument
        add("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
        add("--out", required=True, type=Path, help="folder")
        add(
            "--model",
            action="append",
            default=argparse.SUPPRESS,
            help="a potential: folder of a model (RUN/model), name of a shipped one, or OWNER/NAME on the Hub; "
            f"repeated: the mean of several; {DEFAULT_POTENTIAL} if not given",
        )
        add("--device", default="auto", help="auto, cpu or cuda")
        add("--dtype", default=self.dtype, help="auto (that of the model), float32 or float64")
        for name, kind, default, about in self.options:
            how: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind, "default": default}
            add(f"--{name.replace('_', '-')}", help=about, **how)

    def run(self, arguments: argparse.Namespace) -> None:
        """Do it with every structure, and say where the table is."""
        from prism_plugin.simulation.relaxation import potential_calculator
        from prism_plugin.simulation.runner import run_files

        models = getattr(arguments, "model", DEFAULT_POTENTIAL)
        calculator = potential_calculator(models, arguments.device, arguments.dtype)
        counts = run_files(arguments.files, calculator, self.make(calculator, arguments), arguments.out)
        how = " (column error; delete such rows to try again)" if counts["failed"] else ""
        print(f"{counts['done']} done, {counts['kept']} were there already, {counts['failed']} failed{how}")
        print(f"table: {arguments.out / self.name}.csv")
        if not counts["done"] + counts["kept"]:
            raise PrismError(
                f"nothing was done: {'see the table' if how else 'there is no structure in what was given'}"
            )
        if self.finish is not None:
            self.finish(arguments.out)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the values depend on."""
    aside = ("command", "files", "out", "model", "device", "traceback")
    return {name: value for name, value in vars(arguments).items() if name not in aside}


def _relax(calculator: Any, arguments: argparse.Namespace) -> Any:
    from prism_plugin.files import replaced
    from prism_plugin.simulation.relaxation import relax_many
    from prism_plugin.simulation.runner import Run

    if arguments.format not in ("extxyz", "cif"):
        raise PrismError(f"unknown format {arguments.format!r}; choose one of: extxyz, cif")

    def work(structures: Any) -> Any:
        settings = (arguments.fmax, arguments.steps, not arguments.fix_cell)
        pairs = ((given, given.atoms) for given in structures)
        for given, done in relax_many(pairs, calculator, *settings, called=lambda given: given.name):
            if isinstance(done, Exception):
                yield given, done
            elif arguments.format == "cif" and done.atoms.cell.rank not in (0, 3):
                yield given, PrismError("a CIF has three lattice vectors or none: take --format extxyz")
            else:
                yield given, values(done, given.place)

    def values(done: Any, place: Path) -> list[Any]:
        from ase.io import write

        from prism_plugin.data.structure_files import without_labels

        path = place.with_name(f"{place.name}.{arguments.format}")
        with replaced(path) as aside:
            write(aside, without_labels(done.atoms), format=arguments.format)
        volumes = [one.get_volume() if one.cell.rank == 3 else float("nan") for one in (done.start, done.atoms)]
        energy = float(done.atoms.get_potential_energy())
        change = 100 * done.volume_change
        return [*volumes, change, energy, done.largest_force, done.steps, done.is_converged, path.name]

    columns = ("start volume (Å^3)", "volume (Å^3)", "change (%)", "energy (eV)", "largest force (eV/Å)", "steps")
    return Run("relax", (*columns, "converged", "file"), work, _settings(arguments), last=f".{arguments.format}")


def _draw_relaxations(out: Path) -> None:
    import csv

    from prism_plugin.simulation.plots import plot_relaxations

    with open(out / "relax.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["error"]]
    changes, steps = [float(row["change (%)"] or "nan") / 100 for row in rows], [int(row["steps"]) for row in rows]
    plot_relaxations(changes, steps, [row["converged"] == "yes" for row in rows], out / "relax.png")
    print(f"picture: {out / 'relax.png'}")


def _dynamics(calculator: Any, arguments: argparse.Namespace) -> Any:
    from prism_plugin.simulation.dynamics import DynamicsSettings, run_dynamics
    from prism_plugin.simulation.plots import plot_dynamics
    from prism_plugin.simulation.runner import Run, one_by_one

    names = ("ensemble", "temperature", "pressure", "timestep", "steps", "every", "seed")
    settings = DynamicsSettings(**{name: getattr(arguments, name) for name in names})
    if arguments.repeat < 1:
        raise PrismError(f"repeat must be at least 1, got {arguments.repeat}")

    def work(given: Any) -> list[Any]:
        atoms = given.atoms.repeat([arguments.repeat if periodic else 1 for periodic in given.atoms.pbc])
        found = run_dynamics(atoms, calculator, settings, given.place, progress=True)
        plot_dynamics(found["log"], len(atoms), given.place / "md.png")
        return [len(atoms), found["temperature"], found["volume"], found["drift"], given.place.name]

    columns = ("moving atoms", "temperature (K)", "volume (Å^3)", "drift (meV/atom/ps)", "folder")
    return Run("md", columns, one_by_one(work), _settings(arguments), last="/md.png")


def _of_properties(
    name: str,
    about: str,
    output: str,
    function: str,
    last: str,
    columns: Sequence[str],
    options: Sequence[tuple[str, type, Any, str]],
) -> Verb:
    """Return the verb of a function of :mod:`prism_plugin.simulation.properties`, whose arguments its options are."""

    def make(calculator: Any, arguments: argparse.Namespace) -> Any:
        from prism_plugin.simulation import properties
        from prism_plugin.simulation.runner import Run, one_by_one

        chosen = {option: getattr(arguments, option) for option, *_ in options}
        properties.check_options(**chosen)

        def work(given: Any) -> list[Any]:
            found = getattr(properties, function)(given.atoms, calculator, given.place, **chosen)
            return [*[found[column] for column in columns], given.place.name]

        def doubt(values: Sequence[Any]) -> str:
            return properties.doubt_of(dict(zip(columns, values, strict=False)))

        return Run(name, (*columns, "folder"), one_by_one(work), _settings(arguments), doubt=doubt, last=last)

    return Verb(name, about, output, options, make)


_FMAX = "largest force on an atom at the end of a relaxation, eV/Å"

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "relax",
            "relax positions and cells of structures with a potential",
            "the relaxed structures, and relax.png",
            [
                ("fmax", float, 0.05, _FMAX),
                ("steps", int, 500, "most steps of a relaxation"),
                ("fix_cell", bool, None, "keep the cells as they are"),
                ("format", str, "extxyz", "of the relaxed structures: extxyz or cif"),
            ],
            _relax,
            dtype="auto",
            finish=_draw_relaxations,
        ),
        Verb(
            "md",
            "run molecular dynamics with a potential",
            "a folder of each: trajectory.traj, log.csv, md.png",
            [
                ("ensemble", str, "nvt", "nve, nvt (Bussi) or npt (Martyna-Tobias-Klein, isotropic)"),
                ("temperature", float, 300.0, "K"),
                ("pressure", float, 0.0, "GPa, of npt"),
                ("timestep", float, 1.0, "fs"),
                ("steps", int, 1000, "how many"),
                ("every", int, 10, "steps between two frames of the trajectory"),
                ("repeat", int, 1, "copies of the cell along each of its periodic vectors"),
                ("seed", int, 0, "of the velocities and the thermostat"),
            ],
            _dynamics,
            dtype="auto",
        ),
        _of_properties(
            "eos",
            "fit equations of state (Birch-Murnaghan) with a potential",
            "a folder of each: eos.csv, eos.png",
            "equation_of_state",
            "/eos.png",
            ("volume (Å^3/atom)", "bulk modulus (GPa)", "R^2"),
            [
                ("fmax", float, 0.01, _FMAX),
                ("strain", float, 0.06, "largest change of the cell's lengths"),
                ("points", int, 11, "number of volumes"),
            ],
        ),
        _of_properties(
            "elastic",
            "fit elastic constants with a potential",
            "a folder of each: elastic.csv (the tensor), elastic.png",
            "elastic_constants",
            "/elastic.png",
            ("bulk modulus (GPa)", "shear modulus (GPa)", "Young's modulus (GPa)"),
            [("fmax", float, 0.01, _FMAX)],
        ),
        _of_properties(
            "phonons",
            "compute phonons with a potential",
            "a folder of each: phonon.yaml, thermal.csv, phonons.png",
            "phonons",
            "/phonons.png",
            ("highest frequency (THz)", "lowest frequency (THz)", "heat capacity at 300 K (J/(K mol))"),
            [
                ("fmax", float, 1e-4, _FMAX),
                ("min_length", float, 15.0, "least length of the supercell's vectors, Å"),
            ],
        ),
    )
}
