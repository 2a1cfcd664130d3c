"""PRISM for ``torch_sim/models``: there models of other packages are re-exported under one name."""

import traceback
import warnings

try:
    from prism_plugin.calculators.torch_sim import TorchSimPRISM as PrismModel
except ImportError as error:
    warnings.warn(f"prism-plugin cannot be imported: {traceback.format_exc()}", stacklevel=2)
    raise ImportError("PRISM needs prism-plugin: pip install prism-plugin") from error

__all__ = ["PrismModel"]
