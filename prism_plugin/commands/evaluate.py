"""``prism evaluate``: score a model on crystals with a target."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_model, add_parts
from prism_plugin.errors import PrismError

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on crystals with a target",
        description="Score a model. The folder gets predictions.csv, parity.png, elements.png. The MAE of the mean "
        "is that of the best constant, the mean of the scored crystals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_chosen(evaluate)
    evaluate.add_argument("--out", required=True, type=Path, help="folder of the report")
    add_model(evaluate)


def add_chosen(parser: Any) -> None:
    """Add the options that say on which crystals a model is looked at."""
    add = parser.add_argument
    add("--data", required=True, help="file, folder or data set, as for prism train")
    add("--target", help="key of the target; the model's own if not given")
    add("--part", help="train, val or test; all crystals of a file, and test of a data set, if not given")
    add_parts(parser)
    add("--seed", type=int, help="of the split, where there is none; that of the model's training if not given")


def run(arguments: argparse.Namespace) -> None:
    """Score the model and print the table."""
    from prism_plugin.devices import find_device
    from prism_plugin.pretrained import load
    from prism_plugin.tasks.scores import format_scores
    from prism_plugin.training import evaluate

    model = load(arguments.model).to(find_device(arguments.device))
    parts = chosen_parts(arguments, model)
    scores = evaluate(model, parts, arguments.out, arguments.batch_size)
    print(format_scores(scores, model.target, model.unit))
    print(f"predictions, plots: {arguments.out}")


def chosen_parts(arguments: argparse.Namespace, model: Any) -> dict[str, list[Any]]:
    """Read the records that :func:`add_chosen`'s options mean, by the name of their part."""
    from prism_plugin.data import DATASETS, read_records
    from prism_plugin.pretrained import saved_metadata
    from prism_plugin.tasks import TASKS
    from prism_plugin.training.job import label_keys, load_parts

    own = TASKS[model.task].target_name(model)
    target = arguments.target or own
    if target not in (model.target, own):
        print(f"the model's {model.target} against {target!r} of the data: are they the same?")
    keys = label_keys(vars(arguments))
    is_whole = all(value is None for value in (arguments.part, arguments.splits, arguments.fold))
    if is_whole and arguments.data not in DATASETS:
        return {"all": read_records(arguments.data, target, arguments.skip_missing, keys)}
    seed = arguments.seed
    if seed is None:  # then crystals that the model was trained on are not in its test part
        seed = saved_metadata(arguments.model).get("settings", {}).get("seed", 0)
    given = {name: getattr(arguments, name) for name in ("fold", "splits", "skip_missing")}
    divided = load_parts(arguments.data, target, seed=seed, keys=keys, **given)
    part = arguments.part or "test"
    if part not in divided:
        raise PrismError(f"no part {part!r}; choose one of: {', '.join(divided)}")
    return {part: divided[part]}
