"""What runs in the teacher's interpreter: it answers structures with energies, forces and stresses.

It is started as a script by an interpreter that may have neither this package nor its versions of other packages: it
imports NumPy, ASE, and what the teacher itself needs. Messages are dictionaries of arrays, as npz with their length in
front; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["read_message", "write_message"]

_LENGTH = struct.Struct("<Q")


def write_message(file: IO[bytes], **arrays: Any) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    file.write(_LENGTH.pack(len(content)) + content)
    file.flush()


def read_message(file: IO[bytes]) -> dict[str, np.ndarray] | None:
    """Read one message; None where the other side has ended."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = file.read(length)
    if len(content) < length:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _load_matgl(folder: Path, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load a matgl potential, and say what it is."""
    # Without them matgl would take the path for the name of a model, and look for it on the net.
    missing = [name for name in ("model.json", "model.pt", "state.pt") if not (folder / name).is_file()]
    if missing:
        raise ValueError("the folder is no matgl model, it has no " + ", ".join(missing))
    import matgl
    from matgl.ext.ase import PESCalculator

    potential = matgl.load_model(str(folder))
    calculator = PESCalculator(potential, **{"stress_unit": "eV/A3", **arguments})
    elements = getattr(getattr(potential, "model", None), "element_types", None)
    about = {
        "kind": "matgl",
        "version": matgl.__version__,
        "digest": _digest(sorted(file for file in folder.iterdir() if file.is_file())),
        "elements": None if elements is None else list(elements),
    }
    return calculator, about


def _load_import_path(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make an ASE calculator of ``module:name``, and say what it is."""
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise ValueError(f"the module {module_name!r} has no {attribute!r}")
    calculator = getattr(module, attribute)(**arguments)
    package = sys.modules[module_name.split(".")[0]]
    about = {
        "kind": name,
        "version": str(getattr(package, "__version__", "")),
        "digest": _digest([Path(str(module.__file__))]),
        "elements": None,
    }
    return calculator, about


def _answer(calculator: Any, request: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compute one structure; each from the start, so that the answer depends on nothing that came before."""
    from ase import Atoms

    atoms = Atoms(request["numbers"], request["positions"], cell=request["cell"], pbc=True)
    if hasattr(calculator, "reset"):
        calculator.reset()
    atoms.calc = calculator
    return {
        "energy": float(atoms.get_potential_energy()),
        "forces": np.array(atoms.get_forces(), dtype=np.float64),
        "stress": np.array(atoms.get_stress(voigt=False), dtype=np.float64),
    }


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:400].split())


def main() -> None:
    """Load the teacher that the first argument describes as JSON, and answer until the other side ends."""
    # What libraries print must not mix with the answers: file 1 becomes file 2.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if str(Path(place).resolve()) != here]
    try:
        if Path(given["name"]).is_dir():
            calculator, about = _load_matgl(Path(given["name"]), given["arguments"])
        else:
            calculator, about = _load_import_path(given["name"], given["arguments"])
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side reports it
        write_message(answers, error=_reason(error))
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(given["threads"])
    write_message(answers, about=json.dumps({**about, "arguments": given["arguments"]}))
    requests = os.fdopen(os.dup(0), "rb")
    while (request := read_message(requests)) is not None:
        try:
            answer = _answer(calculator, request)
        except Exception as error:  # noqa: BLE001 - one structure is refused, the process goes on
            answer = {"error": _reason(error)}
        write_message(answers, **answer)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
