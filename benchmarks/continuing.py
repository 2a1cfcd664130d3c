"""Fine-tune the default model on few crystals of its own property: does it hurt, does it help?

50, 200 and 1,000 crystals of the validation part of Materials Project 2018.6.1, which the model has not seen; a fifth
of them validates, the rest of that part tests. Labels: ``same`` (as the model's), ``shifted`` (by a number for each
element, normally distributed with 0.1 eV, as by another functional), ``scaled`` (by 1.05, and the same shifts). MAE on
the test crystals of the untouched model, of that with the elements' numbers fitted, and of what a run keeps.

    python benchmarks/continuing.py DATA runs/continuing --out docs/default_model/continuing.json
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from prism_plugin import PRISM, load
from prism_plugin.data import Record, make_datasets, read_records
from prism_plugin.files import write_json
from prism_plugin.graph.store import GraphStore
from prism_plugin.potential import element_shares
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import TrainingSettings, train

SIZES = (50, 200, 1000)
LABELS = ("same", "shifted", "scaled")


def relabelled(records: list[Record], labels: str, elements: tuple[str, ...], seed: int) -> list[Record]:
    """Change labels as another functional would."""
    if labels == "same":
        return records
    shifts = element_shares([one.atoms for one in records], elements) @ np.random.default_rng(seed).normal(
        0, 0.1, len(elements)
    )
    factor = 1.05 if labels == "scaled" else 1.0
    return [replace(one, target=factor * one.target + shift) for one, shift in zip(records, shifts, strict=True)]


def mae(model: PRISM, graphs: GraphStore, records: list[Record]) -> float:
    """Mean absolute error on the graphs of records."""
    found = model.predict_graphs(graphs).double().numpy()
    return float(np.abs(found - [one.target for one in records]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path)
    add("folder", type=Path)
    add("--out", type=Path, required=True, help="JSON; what it has is not run again")
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--labels", nargs="+", default=LABELS, choices=LABELS)
    add("--seeds", type=int, default=3)
    add("--lr", type=float, nargs="+", default=[Regression.continuing["lr"]])
    given = parser.parse_args()
    torch.set_num_threads(1)
    init = load()
    unseen = [one for one in read_records(given.data, "e_form") if one.split == "val"]
    graphs = make_datasets({"x": unseen}, *init.cutoffs, True, None, init.has_waves)["x"].graphs
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for size in given.sizes:
        for labels in given.labels:
            for lr in given.lr:
                for seed in range(given.seeds):
                    name = f"{size} {labels} {lr:g} {seed}"
                    if name in found:
                        continue
                    order = np.random.default_rng(seed).permutation(len(unseen))
                    records = relabelled([unseen[index] for index in order], labels, init.element_types, seed)
                    parts = {"train": records[: size * 4 // 5], "val": records[size * 4 // 5 : size]}
                    test, its_graphs = records[1000:], graphs.subset(order[1000:])
                    settings = TrainingSettings(
                        target="formation_energy", unit="eV/atom", seed=seed, **{**Regression.continuing, "lr": lr}
                    )
                    run = given.folder / name.replace(" ", "-")
                    summary = train(settings, parts, run, resume=True, init=init, progress=False)
                    corrected = Regression().new_model(settings, parts["train"], init.element_types, init).eval()
                    found[name] = {
                        "untouched": mae(init, its_graphs, test),
                        "corrected": mae(corrected, its_graphs, test),
                        "kept": mae(load(run / "model"), its_graphs, test),
                        "which": summary["kept"],
                        "validation": summary["validation"],
                    }
                    print(name, found[name], flush=True)
                    write_json(given.out, found)


if __name__ == "__main__":
    main()
