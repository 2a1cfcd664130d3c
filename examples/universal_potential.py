"""A potential of many elements that has learned from another one: frames, labels, training, in one command.

The teacher is a matgl potential (a folder) or an ASE calculator (``ase.calculators.emt:EMT``), perhaps in an
environment of its own; STRUCTURES are crystals as ``prism train --data`` reads them, with a split. The same command
goes on after an interruption, whatever it was. 100,000 frames of a universal teacher take some four hours of a core, an
epoch over them three quarters of one. --dry-run is a minute of EMT's seven metals.
"""

import argparse
from pathlib import Path

from prism_plugin.data import PES, read_records, split_records
from prism_plugin.distillation.labelling import label_frames
from prism_plugin.distillation.settings import LabelSettings
from prism_plugin.training import TrainingSettings, train

MODEL = {
    "dim": 64,
    "num_layers": 2,
    "cutoff": 5.0,
    "atom_encoder": "elements",
    "directions": False,  # forces turn with the crystal, exactly
    "angular": 8,
}
TRAINING = {
    "optimizer": "muon",
    "lr": 1e-2,
    "options": {"weight_decay": 0.1},
    "clip": 1.0,
    "batch_size": 16,
    # Frames with short distances have forces that would count for all others: chosen on the validation part, with the
    # weights below (docs/potential.md).
    "huber": 0.1,
    "weights": {"energy": 2.0, "forces": 1.0, "stress": 1.0},
    "rotate": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", default="ase.calculators.emt:EMT", help="folder or import path")
    add("--teacher-python", type=Path, help="interpreter of its environment")
    add("--teacher-path", type=Path, help="folder that its Python searches first")
    add("--structures", type=Path, help="parents of the frames; prototypes alone without it")
    add("--frames", type=int, default=100_000)
    add("--epochs", type=int, default=4)
    add("--processes", type=int, default=1, help="of the labels and of the training")
    add("--out", type=Path, default=Path("runs/universal"))
    add("--dry-run", action="store_true", help="few frames, a small model: a minute")
    given = parser.parse_args()

    shards = given.out / "shards"
    names = ("teacher", "structures", "teacher_python", "teacher_path", "processes")
    frames = 200 if given.dry_run else given.frames
    label_frames(LabelSettings(frames=frames, **{name: getattr(given, name) for name in names}), shards)

    small = {"dim": 16, "num_layers": 1, "angular": 2} if given.dry_run else {}
    settings = TrainingSettings(
        target=PES,
        model={**MODEL, **small},
        epochs=1 if given.dry_run else given.epochs,
        devices=given.processes,
        device="cpu" if given.processes > 1 else "auto",
        **TRAINING,
    )
    parts = split_records(read_records(shards, PES))
    summary = train(settings, parts, given.out / "run", resume=True, cache=given.out / "graphs")
    if summary:  # of the first process
        scores = summary["scores"]["val"]
        print(f"validation MAE: {scores['energy_mae']:.0f} meV/atom, {scores['forces_mae']:.3f} eV/Å")
        print(f"potential: {given.out / 'run' / 'model'}")


if __name__ == "__main__":
    main()
