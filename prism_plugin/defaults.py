"""Names of the models that are taken if none is named; light, for help texts that must not wait for torch."""

from __future__ import annotations

__all__ = ["DEFAULT_MODEL", "DEFAULT_POTENTIAL", "POTENTIALS"]

DEFAULT_POTENTIAL = "prism-universal-pbe"  # what calculators and simulations take
DEFAULT_MODEL = "prism-mp2018-eform"  # what predictions of a property take
# What a message says of potentials to take.
POTENTIALS = f"({DEFAULT_POTENTIAL}, or one of yours: prism train --target pes)"
