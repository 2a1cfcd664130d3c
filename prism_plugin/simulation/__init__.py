"""What people do with a potential: relaxations, dynamics, equations of state, elastic constants, phonons."""

from prism_plugin.simulation.dynamics import DynamicsSettings, run_dynamics
from prism_plugin.simulation.relaxation import Relaxation, relax, relax_one

__all__ = ["DynamicsSettings", "Relaxation", "relax", "relax_one", "run_dynamics"]
