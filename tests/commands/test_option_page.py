"""The schema: the page made of it, and what else derives from it."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prism_plugin import PRISM, PRISMPotential, cli
from prism_plugin.commands.option_page import option_page
from prism_plugin.config import OPTIMIZER_OPTIONS, ModelOptions, PotentialOptions
from prism_plugin.errors import PrismError
from prism_plugin.optim import OPTIMIZERS, make_optimizer
from prism_plugin.schema import changed, described
from prism_plugin.settings import DataOptions, TrainingSettings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_options_is_that_of_the_schema() -> None:
    assert (DOCS / "options.md").read_text(encoding="utf-8") == option_page()


@pytest.mark.parametrize(("model", "options"), [(PRISM, ModelOptions), (PRISMPotential, PotentialOptions)])
def test_the_signature_of_a_model_is_the_schema(model: type, options: type) -> None:
    signature = list(inspect.signature(model).parameters.values())
    assert [(one.name, one.default) for one in signature] == [
        (name, default) for name, (default, _, _) in described(options).items()
    ]
    assert all(one.kind is one.POSITIONAL_OR_KEYWORD for one in signature)


def test_every_optimizer_has_its_options() -> None:
    assert OPTIMIZER_OPTIONS.keys() == OPTIMIZERS.keys()
    for options, _ in OPTIMIZER_OPTIONS.values():
        assert all(about for _, about, _ in described(options).values())


def test_numbers_of_numpy_become_plain_ones() -> None:
    options = ModelOptions(dim=np.int64(8), cutoff=np.float32(4.5), experts=["cell"], mean=np.float64(1.0))
    assert [type(value) for value in (options.dim, options.cutoff, options.mean)] == [int, float, float]
    assert (options.dim, options.cutoff, options.experts) == (8, 4.5, ("cell",))
    assert ModelOptions(dim=8.0).dim == 8


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (TrainingSettings, {"epoch": 3}, "unknown option 'epoch'; did you mean 'epochs'"),
        (TrainingSettings, {"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        (TrainingSettings, {"epochs": "3"}, "epochs must be a whole number of at least 1, got '3'"),
        (TrainingSettings, {"rotate": 1}, "rotate must be True or False, got 1"),
        (
            ModelOptions,
            {"experts": "cell"},
            r"experts must be a tuple, each a text, got 'cell'; of one write \('cell',\)",
        ),
        (TrainingSettings, {"weights": {"energy": -1.0}}, "the value of 'energy' in weights must be a number of at le"),
        (TrainingSettings, {"model": {"dmi": 3}}, "unknown model argument 'dmi'; did you mean 'dim'"),
        (TrainingSettings, {"model": {"dim": 1}}, "dim must be a whole number of at least 2 and at most 4096, got 1"),
        (TrainingSettings, {"model": 3}, "model must be a table of named values, got 3"),
        (DataOptions, {"fold": -1}, "fold must be a whole number of at least 0, got -1"),
        (ModelOptions, {"experts": "cell"}, "experts must be a tuple, each a text, got 'cell'"),
        (ModelOptions, {"cutoff": float("inf")}, "cutoff must be a positive number of at most 100, got inf"),
        (ModelOptions, {"fusion": "mean"}, "unknown fusion 'mean'; choose one of: 'scalar', 'gated'"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(options: type, given: dict, message: str) -> None:
    with pytest.raises(PrismError, match=message):
        options(**given)


def test_changes_are_checked_and_settings_are_frozen() -> None:
    settings = TrainingSettings("e")
    assert changed(settings, epochs=3).epochs == 3
    with pytest.raises(PrismError, match="epochs must be"):
        changed(settings, epochs=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 3


def test_options_and_help_need_no_torch() -> None:
    code = (
        "import sys, prism_plugin.settings\n"
        "from prism_plugin.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'matgl', 'ase', 'pymatgen', 'lightning') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_fault_of_the_program_is_not_said_to_be_the_users(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def broken(_: object) -> None:
        raise ValueError("boom")

    monkeypatch.setattr("prism_plugin.commands.presets.run", broken)
    assert cli.main(["presets"]) == 70
    error = capsys.readouterr().err
    assert "internal error: ValueError: boom" in error
    assert "Traceback" in error
    assert "fault of the program" in error


def test_a_users_mistake_is_one_line_and_a_traceback_where_it_is_wanted(capsys) -> None:
    assert cli.main(["info", "nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(["--traceback", "info", "nothing"]) == 2
    assert "FileNotFoundError" in capsys.readouterr().err


def test_flags_of_a_preset_can_be_switched_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = cli._parser()
    for given, rotate in ((["--rotate"], True), (["--no-rotate"], False)):
        values = vars(parser.parse_args(["train", "--preset", "mp/bulk_modulus", "--out", "x", *given]))
        assert values["rotate"] is rotate
    assert "rotate" not in vars(parser.parse_args(["train", "--preset", "mp/bulk_modulus", "--out", "x"]))


def test_every_option_is_a_flag_of_prism_train() -> None:
    given = vars(cli._parser().parse_args(["train", "--out", "x"]))
    assert given.keys() == {"command", "traceback", "out"}  # what is not given is left to preset, file and defaults
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["train", "--out", "x", "--epoch"])
    (commands,) = (action for action in cli._parser()._actions if action.dest == "command")
    flags = {action.dest for action in commands.choices["train"]._actions}
    assert {*described(TrainingSettings), *described(DataOptions)} <= flags


def test_what_is_said_of_schedules_is_true() -> None:
    for name, (_, has_schedule) in OPTIMIZER_OPTIONS.items():
        _, schedule = make_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))])
        assert (schedule is not None) == has_schedule, name
