"""The ``prism`` command.

Every error of the user's making ends in one line that says what is wrong and what to do, and exit status 2.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_plugin import __version__
from prism_plugin.commands import label

DEFAULT_MODEL = "prism-mp2018-eform"  # of prism_plugin.pretrained, whose import takes seconds

__all__ = ["add_training_options", "main", "training_values"]


def _named_value(text: str) -> tuple[str, Any]:
    """Read ``name=value``; the value is a Python literal or else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value, for example dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="PRISM: train and use graph networks for crystals.")
    parser.add_argument("--version", action="version", version=f"prism-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_train(commands)
    _add_presets(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_scaling(commands)
    _add_info(commands)
    _add_rodflow(commands)
    label.add_parser(commands)
    demo = commands.add_parser(
        "demo",
        help="train, save, reload and use a model on alloys computed here by ASE's EMT; minutes, no download",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of the demo's runs")
    demo.add_argument("--crystals", type=int, default=1000, help="size of the data set")
    demo.add_argument("--epochs", type=int, default=40, help="passes over the training crystals")
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model on crystals with a target",
        description="Train PRISM. The run folder gets the model (for matgl.load_model), log, checkpoints, predictions, "
        "plots and a summary. Of a value that is given twice the command line counts, then --config, then --preset.",
        epilog="examples: prism train --preset jarvis/formation_energy --out runs/jarvis | "
        "prism train --data crystals.jsonl --target band_gap --unit eV --out runs/gap --epochs 100 | "
        "prism train --resume runs/gap",
        argument_default=argparse.SUPPRESS,
    )
    what = train.add_argument_group("what to train on")
    add = what.add_argument
    add(
        "--preset",
        metavar="NAME",
        help="an experiment of the paper, see: prism presets; sets data, target and all below",
    )
    add("--config", metavar="FILE", help="TOML or JSON file of these options, with tables model and options")
    add(
        "--data",
        help=".jsonl or .extxyz file (also .xz, .gz); folder with id_prop.csv and structure files; or a data set: "
        "emt-alloys, emt-alloys-pes, jarvis, mp2018, matbench_... (prism info lists them)",
    )
    add("--target", help="what to predict: its key in the data; pes: a potential of energies, forces and stresses")
    add("--unit", help="its unit; with eV/atom the model can be an ASE energy; a data set knows its own")
    _add_parts(what)
    add(
        "--init",
        metavar="MODEL",
        help="start from this model: a folder, the name of a shipped one, or OWNER/NAME on the Hub",
    )
    run = train.add_argument_group("the run")
    add = run.add_argument
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="RUN", help="run folder")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with an interrupted run; beside it only --epochs (without schedule), --device, --devices, --nodes, "
        "--cache, --recompute",
    )
    add("--seed", type=int, help="of weights, order, rotations, and the split where none is given (default: 0)")
    add("--device", help="auto, cpu or cuda (default: auto)")
    add("--devices", type=int, help="data-parallel on so many GPUs, or CPU processes, of each machine (default: 1)")
    add("--nodes", type=int, help="machines, started by torchrun or SLURM (examples/cluster) (default: 1)")
    add(
        "--cache",
        metavar="DIR",
        help="folder for graphs, reused by later runs (default: in memory; downloaded data have one)",
    )
    add_training_options(train)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to train; a parser with ``argument_default=SUPPRESS`` leaves out what is not given.

    Tables come as lists of pairs; :func:`training_values` makes them what :meth:`Job.make` reads.
    """
    add = parser.add_argument_group("how to train").add_argument
    add("--epochs", type=int, help="passes over the training crystals (default: 500; 60 for a potential)")
    add("--batch-size", type=int, help="crystals per update, all devices together (default: 64; 4 for a potential)")
    add(
        "--optimizer",
        help="adamw-schedulefree (default), adam-onecycle, elra, muon (default for a potential), rod-flow, sgd, or the "
        "path of a class such as "
        "pytorch_optimizer.SOAP",
    )
    add("--lr", type=float, help="learning rate (default: the optimizer's own); elra adapts it by itself")
    pairs: dict[str, Any] = {"type": _named_value, "action": "append", "metavar": "NAME=VALUE"}
    add(
        "--option",
        dest="options",
        help="an option of the optimizer, for example --option weight_decay=0.01 with adamw-schedulefree, --option "
        "accumulate=2 with elra, like=adam with rod-flow (docs/rod_flow.md); may be repeated",
        **pairs,
    )
    add(
        "--set",
        dest="model",
        help="an argument of PRISM (of a potential: PRISMPotential), for example --set dim=128 --set cutoff=6.0; may "
        "be repeated",
        **pairs,
    )
    add(
        "--weight",
        dest="weights",
        help="of energy, forces or stress in the loss of a potential, for example --weight energy=50; may be repeated",
        **pairs,
    )
    add("--clip", type=float, help="largest norm of the gradient (default: none; 1 for a potential)")
    add("--precision", help="32-true (default) or bf16-mixed: products in bfloat16, docs/performance.md")
    add(
        "--recompute",
        action=argparse.BooleanOptionalAction,
        help="compute the activations of edges anew in the backward pass: less memory, more time, same numbers",
    )
    add("--no-rotate", dest="rotate", action="store_false", help="no random rotation of training crystals")
    add("--no-normalize", dest="normalize", action="store_false", help="no mean and spread of the targets in the model")
    add("--batchnorm-batches", type=int, help="training batches for the BatchNorm statistics (default: all)")


def training_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make tables of the repeated options ``--set``, ``--option`` and ``--weight``."""
    return {name: dict(value) if name in ("model", "options", "weights") else value for name, value in given.items()}


def _add_presets(commands: Any) -> None:
    commands.add_parser(
        "presets",
        help="list the experiments of the paper and the recipes of the shipped models",
        description="Print every row of the supplement's Tables 2, 3 and 4, and the recipes of the shipped models. "
        "Run one: prism train --preset NAME --out RUN; any option can be added, --data FILE --target KEY as well.",
    )


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="predict structures of files and write a table",
        description="Predict structures: CIF, POSCAR, whatever ASE reads; .extxyz, .traj, .db, .jsonl frame by frame; "
        "folders of these (not their subfolders). Rows are written as they come: the same command goes on after an "
        "interruption. A bad structure is a row with a reason.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = predict.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="structure file, or folder")
    add("--out", required=True, type=Path, help="the table, CSV")
    _add_model(predict, several=True)
    add("--devices", type=int, default=1, help="processes, each with a GPU of its own with --device cuda")


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on crystals with a target",
        description="Score a model. The folder gets predictions.csv, parity.png, elements.png. The MAE of the mean "
        "is that of the best constant, the mean of the scored crystals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = evaluate.add_argument
    add("--data", required=True, help="file, folder or data set, as for prism train")
    add("--target", help="key of the target; the model's own if not given")
    add("--part", help="train, val or test; all crystals of a file, and test of a data set, if not given")
    _add_parts(evaluate)
    add("--seed", type=int, help="of the split, where there is none; that of the model's training if not given")
    add("--out", required=True, type=Path, help="folder of the report")
    _add_model(evaluate)


def _add_scaling(commands: Any) -> None:
    scaling = commands.add_parser(
        "scaling",
        help="count the edges of each expert against the number of atoms",
        description="Count edges (supplement, Fig. 3, Fig. 4, Eq. 17-19). The folder gets edges.csv, fits.json, "
        "edges.png; the fits are printed. Similarity edges depend on the model, layer by layer; the default model "
        "has the atomistic expert only and none of them: give one that has the similarity expert.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = scaling.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="structures, as for prism predict")
    add("--crystals", type=int, default=3000, help="random crystals of them; 0 takes all")
    add("--seed", type=int, default=0, help="of the choice")
    add("--cutoff", type=float, help="radius of the atomistic edges, Å; the model's if not given")
    add("--cell-cutoff", type=float, help="radius of the cell edges, Å; the model's if not given")
    add("--out", required=True, type=Path, help="folder")
    _add_model(scaling)


def _add_info(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="say what a model is, or what is installed, shipped and known by name",
        description="With a model: its target, sizes, elements, scores. Without: versions, devices, data sets, models.",
    )
    info.add_argument("model", nargs="?", help="folder of a model, or the name of a shipped one")


def _add_parts(parser: Any) -> None:
    """Which rows of the data are taken, and for what."""
    add = parser.add_argument
    add("--fold", type=int, help="of a Matbench task, 0 to 4")
    add(
        "--splits",
        metavar="FILE",
        help='JSON with the names of each part: {"train": [...], "val": [...], "test": [...]}',
    )
    add("--skip-missing", action="store_true", help="leave out rows without the target")


def _add_model(parser: argparse.ArgumentParser, several: bool = False) -> None:
    add = parser.add_argument
    about = "folder of a model (RUN/model), name of a shipped one, or OWNER/NAME on the Hub"
    if several:
        about += f"; repeated, a committee: mean and standard deviation of its models; {DEFAULT_MODEL} if not given"
        add("--model", action="append", default=argparse.SUPPRESS, help=about)
    else:
        add("--model", default=DEFAULT_MODEL, help=about)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--batch-size", type=int, default=64, help="most crystals that are predicted together")


def _add_rodflow(commands: Any) -> None:
    rodflow = commands.add_parser(
        "rodflow",
        help="run rod flow and stable flow beside an optimizer on small networks, and draw how they follow it",
        description="Track an optimizer at the edge of stability. The folder gets a table (CSV) and a summary (JSON) "
        "of every network and tracking.png: loss, effective sharpness with its threshold, distance of both flows. "
        "The learning rate is that of the EMA convention, in which momentum is a mean of gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = rodflow.add_argument
    add(
        "--optimizer",
        default="adam",
        help="gd, heavy-ball, nesterov, scalar-rmsprop, rmsprop, scalar-adam, adam, scalar-nadam or nadam",
    )
    add("--network", action="append", help="toy, mlp, cnn, vit or prism; may be repeated; mlp, cnn, vit if not given")
    add("--out", required=True, type=Path, help="folder; networks that it has already are not computed again")
    add("--steps", type=int, default=400, help="optimizer steps that are tracked, after 10 of warm-up")
    add("--lr", type=float, help="learning rate; that of a table, which meets the edge, if not given")
    add("--beta1", type=float, help="of the momentum; that of the table if not given")
    add("--beta2", type=float, help="of the second moment; that of the table if not given")
    add("--form", default="signed", help="of the rod: signed, or outer, the papers' covariance of rank one")
    add("--substeps", type=int, default=2, help="Euler steps of the flows per optimizer step")
    add("--no-floor", action="store_true", help="no rounding noise on the rod, so that a closed one never opens")
    add("--sharpness-every", type=int, default=10, help="steps between two computations of the sharpness; 0 is never")
    add("--dtype", default="float64", help="float64 or float32")
    add("--seed", type=int, default=0, help="of weights and noise")
    add("--data", help="crystals for --network prism (.jsonl or .extxyz); alloys computed by EMT if not given")
    add("--target", help="key of the number to predict in --data")
    add("--crystals", type=int, default=32, help="how many of --data, from the first on")


def _rodflow(arguments: argparse.Namespace) -> None:
    from prism_plugin.data import read_records
    from prism_plugin.tracking import TrackingSettings, track
    from prism_plugin.tracking.run import format_summary

    settings = TrackingSettings(
        optimizer=arguments.optimizer,
        networks=tuple(arguments.network or ("mlp", "cnn", "vit")),
        steps=arguments.steps,
        lr=arguments.lr,
        beta1=arguments.beta1,
        beta2=arguments.beta2,
        form=arguments.form,
        substeps=arguments.substeps,
        floor=not arguments.no_floor,
        sharpness_every=arguments.sharpness_every,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    if arguments.crystals < 2:
        raise ValueError(f"--crystals must be at least 2, got {arguments.crystals}")
    if arguments.target is not None and arguments.data is None:
        raise ValueError("--target names a number in --data: give that, too")
    records = None
    if arguments.data is not None:
        if arguments.target is None:
            raise ValueError("--data needs --target, the key of the number to predict")
        records = read_records(arguments.data, arguments.target)[: arguments.crystals]
    print(format_summary(track(settings, arguments.out, records)))
    print(f"picture: {arguments.out / 'tracking.png'}; tables: {arguments.out}")


def _train(arguments: argparse.Namespace) -> None:
    from prism_plugin.pretrained import load
    from prism_plugin.training import train
    from prism_plugin.training.job import Job, read_config
    from prism_plugin.training.scores import format_scores

    own = ("command", "config", "out", "resume")
    given = training_values({name: value for name, value in vars(arguments).items() if name not in own})
    resume = hasattr(arguments, "resume")
    if resume:
        if hasattr(arguments, "config"):
            raise ValueError("a run goes on with its own values: leave --config out beside --resume")
        job = Job.resumed(arguments.resume, given)
    else:
        job = Job.make(given, read_config(arguments.config) if hasattr(arguments, "config") else None)
    out = arguments.resume if resume else arguments.out
    init = None if job.values.get("init") is None else load(job.values["init"])
    settings, parts = job.load()
    summary = train(settings, parts, out, resume, init, cache=job.values.get("cache"), on_start=job.save)
    if summary:
        print(format_scores(summary["scores"], summary["target"], summary["unit"]))
        print(f"model: {out / 'model'}  (matgl.load_model)\nplots, log, predictions: {out}")


def _presets(arguments: argparse.Namespace) -> None:
    from prism_plugin.recipes import format_presets

    print(format_presets())


def _predict(arguments: argparse.Namespace) -> None:
    from prism_plugin.prediction import predict_files

    given = {name: getattr(arguments, name) for name in ("out", "device", "devices", "batch_size")}
    counts = predict_files(arguments.files, getattr(arguments, "model", DEFAULT_MODEL), **given)
    how = " (column error; delete such rows to try again)" if counts["failed"] else ""
    print(
        f"{counts['predicted']} predicted, {counts['kept']} were there already, {counts['failed']} failed{how}\n"
        f"table: {arguments.out}"
    )
    if not counts["predicted"] + counts["kept"]:
        raise ValueError(f"no structure was predicted: {'see the table' if how else 'there is none in what was given'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from prism_plugin.data import DATASETS, PES, read_records
    from prism_plugin.devices import find_device
    from prism_plugin.potential import PRISMPotential
    from prism_plugin.pretrained import load, saved_metadata
    from prism_plugin.training import evaluate
    from prism_plugin.training.job import load_parts
    from prism_plugin.training.scores import format_scores

    model = load(arguments.model).to(find_device(arguments.device))
    target = arguments.target or (PES if isinstance(model, PRISMPotential) else model.target)
    named = arguments.data in DATASETS
    if all(value is None for value in (arguments.part, arguments.splits, arguments.fold)) and not named:
        parts = {"all": read_records(arguments.data, target, arguments.skip_missing)}
    else:
        seed = arguments.seed
        if seed is None:  # then crystals that the model was trained on are not in its test part
            seed = saved_metadata(arguments.model).get("settings", {}).get("seed", 0)
        names = ("fold", "splits", "skip_missing")
        divided = load_parts(arguments.data, target, seed=seed, **{name: getattr(arguments, name) for name in names})
        part = arguments.part or "test"
        if part not in divided:
            raise ValueError(f"no part {part!r}; choose one of: {', '.join(divided)}")
        parts = {part: divided[part]}
    scores = evaluate(model, parts, arguments.out, arguments.batch_size)
    if target != model.target and not (target == PES and isinstance(model, PRISMPotential)):
        print(f"the model's {model.target} against {target!r} of the data: are they the same?")
    print(format_scores(scores, model.target, model.unit))
    print(f"predictions, plots: {arguments.out}")


def _scaling(arguments: argparse.Namespace) -> None:
    import numpy as np

    from prism_plugin.devices import find_device
    from prism_plugin.prediction import iterate_structures, read_source
    from prism_plugin.pretrained import load
    from prism_plugin.scaling import count_edges, fit_edges, format_fits, write_scaling

    model = load(arguments.model).to(find_device(arguments.device))
    structures = [read_source(name, source) for name, source in iterate_structures(arguments.files)]
    if 0 < arguments.crystals < len(structures):
        chosen = np.random.default_rng(arguments.seed).choice(len(structures), arguments.crystals, replace=False)
        structures = [structures[index] for index in chosen]
    counts = count_edges(structures, model, cutoff=arguments.cutoff, cell_cutoff=arguments.cell_cutoff)
    write_scaling(counts, arguments.out)
    print(format_fits(fit_edges(counts)))
    print(f"table, fits, picture: {arguments.out}")


def _info(arguments: argparse.Namespace) -> None:
    from prism_plugin.info import describe_installation, describe_model

    print(describe_installation() if arguments.model is None else describe_model(arguments.model))


def _demo(arguments: argparse.Namespace) -> None:
    from prism_plugin.demo import run_demo

    run_demo(arguments.out, arguments.crystals, arguments.epochs)


COMMANDS = {
    "train": _train,
    "presets": _presets,
    "predict": _predict,
    "evaluate": _evaluate,
    "scaling": _scaling,
    "info": _info,
    "rodflow": _rodflow,
    "label": label.run,
    "demo": _demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"prism: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"prism: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
