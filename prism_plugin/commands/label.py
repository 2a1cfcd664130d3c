"""``prism label``: frames around crystals, labelled by a teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import named_value

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to those of ``prism``."""
    parser = commands.add_parser(
        "label",
        help="label frames around crystals by a teacher (an ASE calculator or a matgl potential), for a potential",
        description="Make frames of crystals and prototypes (strained, displaced, with defects, from short dynamics "
        "and relaxations) and label them with the energies, forces and stresses of a teacher, which is examined first. "
        "What is written is kept: the same command goes on after an interruption, and with more --frames.",
        epilog="then: prism train --data OUT --target pes --out RUN",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    teacher = parser.add_argument_group("the teacher")
    add = teacher.add_argument
    add("--teacher", required=True, help="folder of a matgl potential, or a calculator such as ase.calculators.emt:EMT")
    add(
        "--teacher-option",
        action="append",
        type=named_value,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the calculator; may be repeated",
    )
    add(
        "--teacher-python",
        type=Path,
        metavar="FILE",
        help="interpreter of the teacher's environment; this one if not given",
    )
    add(
        "--teacher-path",
        type=Path,
        metavar="DIR",
        help="folder that its Python searches first, with another matgl perhaps",
    )
    add("--skip-examination", action="store_true", help="take the teacher as it is")
    add("--processes", type=int, default=1, help="of the teacher; frames do not depend on it")
    add("--threads", type=int, default=1, help="of each process")
    frames = parser.add_argument_group("the frames")
    add = frames.add_argument
    add(
        "--structures",
        type=Path,
        metavar="DATA",
        help="parents, as for prism predict, of a split train; prototypes alone if not given",
    )
    add("--frames", type=int, required=True, help="how many to try")
    add("--max-atoms", type=int, default=40, help="of a frame")
    add("--seed", type=int, default=0, help="of all choices")
    add("--shard-frames", type=int, default=500, help="frames of one file, a multiple of 5")
    add("--out", type=Path, required=True, help="folder of the shards")


def run(arguments: argparse.Namespace) -> None:
    """Label frames, and print what the folder holds."""
    from prism_plugin.distillation.labelling import label_frames
    from prism_plugin.distillation.settings import LabelSettings

    names = ("teacher", "frames", "structures", "teacher_python", "teacher_path", "seed", "max_atoms", "shard_frames")
    more = ("processes", "threads", "skip_examination")
    given = {name: getattr(arguments, name) for name in (*names, *more)}
    settings = LabelSettings(arguments=dict(arguments.teacher_option), **given)
    summary = label_frames(settings, arguments.out)
    refused = sum(summary.refused.values())
    if summary.new:
        print(f"{summary.new} new frames in {summary.seconds:.0f} s, {1e3 * summary.seconds / summary.new:.0f} ms each")
    else:
        print("all frames were there already")
    print(f"{summary.kept} of {summary.asked} frames are labelled, {refused} refused")
    for title, counts in (("labelled", summary.kinds), ("refused", summary.refused)):
        for name, count in counts.items():
            print(f"  {title}: {count:7} {name}")
    print(f"next: prism train --data {arguments.out} --target pes --out RUN")
