"""A PRISM of total energies, made for forces: trained on energies, forces and stresses together.

It is a PRISM in everything; what is fixed here is what forces ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from prism_plugin.config import PotentialOptions
from prism_plugin.matgl_bridge import answer_like_matgl
from prism_plugin.model import PRISM
from prism_plugin.nn.repulsion import ZBLRepulsion
from prism_plugin.schema import described

if TYPE_CHECKING:
    from ase import Atoms
    from torch import Tensor

    from prism_plugin.graph.crystals import CrystalBatch

__all__ = ["PRISMPotential", "element_corrections", "element_shares", "fit_element_refs", "moved_refs"]

_RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # of shares between 0 and 1


class PRISMPotential(PRISM):
    """Total energy in eV, smooth in the positions; forces and stress are its gradients.

    As a PRISM with ``readout="sum"``, no BatchNorm (with it the forces of one crystal depend on the others in its
    batch; decisions #59), evenly spread radial functions (#60), blended images, and means over the atoms where a
    superatom gathers them. With the atomistic expert alone, and also with the multiscale one, n copies of a cell have n
    times its energy. The paper's cell expert and the similarity expert do not keep that: one sees the cell as such, the
    other pairs of atoms however far apart.

    Args:
        element_types: symbols of the elements that the model knows; None means all 118.
        dim: width of all features.
        num_layers: number of layers.
        num_rbf: number of radial basis functions.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.
        similarity_cutoff: largest distance ||h_i - h_j|| of a similarity edge.
        experts: any subset of ``"atomistic"``, ``"cell"``, ``"multiscale"``, ``"similarity"``.
        std: factor of each atom's output, eV; the root mean square of the training forces (times 1 Å).
        element_refs: energy of an atom of each of ``element_types``, eV; None means 0.
        atom_encoder: ``"prism"`` (Eq. 4), ``"cartnet"``, ``"elements"`` or ``"embedding"``, as of
            :class:`~prism_plugin.PRISM`.
        directions: whether edges know their direction; False: forces turn with the crystal exactly.
        cell: ``"translations"``, or ``"reciprocal"``: with it also the cell expert keeps n copies of a cell at n times
            its energy, and the energy stays smooth.
        multiscale: ``"fused"`` or ``"residual"``.
        angular: channels of a block that gives edges the angles between them; 0: none. Call :meth:`calibrate` with the
            first frames before training.
        angular_order: largest degree of its Legendre polynomials, 1 to 3.
        repulsion: ``"zbl"`` for a pair energy between nuclei that are closer than their covalent radii
            (:class:`~prism_plugin.nn.repulsion.ZBLRepulsion`), as trainings have it; None without.
        backbone: ``"cartnet"`` or ``"ecomformer"``; iComFormer's energy is neither smooth nor extensive.

    Raises:
        ValueError: if an option is unknown or a number is out of range.

    Example:
        >>> from ase.build import bulk
        >>> from prism_plugin import PRISMCalculator
        >>> atoms = bulk("Si", cubic=True)
        >>> atoms.calc = PRISMCalculator(PRISMPotential(("Si",)), compute_forces=True)
        >>> atoms.get_forces().shape
        (8, 3)
    """

    __version__ = 1

    # What matgl's tools ask a potential for.
    calc_forces = calc_stresses = True
    calc_hessian = calc_magmom = calc_charge = calc_repuls = False

    # An energy sums over atoms, one strange atom among many is to be seen, and forces are of atoms.
    domain_of_atoms = True

    def __init__(
        self,
        element_types: tuple[str, ...] | None = None,
        dim: int = 32,
        num_layers: int = 2,
        num_rbf: int = 32,
        cutoff: float = 5.0,
        cell_cutoff: float = 15.0,
        similarity_cutoff: float = 1.0,
        experts: tuple[str, ...] = ("atomistic",),
        std: float = 1.0,
        element_refs: tuple[float, ...] | None = None,
        atom_encoder: str = "prism",
        directions: bool = True,
        cell: str = "translations",
        multiscale: str = "fused",
        angular: int = 0,
        angular_order: int = 3,
        repulsion: str | None = None,
        backbone: str = "cartnet",
    ) -> None:
        given = locals()
        options = PotentialOptions(**{name: given[name] for name in described(PotentialOptions)})
        super().__init__(
            element_types,
            dim,
            num_layers,
            num_rbf,
            cutoff,
            cell_cutoff,
            similarity_cutoff,
            experts,
            atom_encoder,
            rbf_scale="even" if backbone == "cartnet" else "cutoff",  # others have a basis of their own
            superatom_readout="mean",
            multiscale_aggregation="mean",
            readout="sum",
            target="energy",
            unit="eV",
            std=std,
            similarity_image="blended",
            norm=None,
            element_refs=element_refs,
            directions=directions,
            cell=cell,
            multiscale=multiscale,
            angular=angular,
            angular_order=angular_order,
            backbone=backbone,
        )
        self.save_args(vars(options))  # in plain types, as a saved model holds them
        self.repulsion = None if repulsion is None else ZBLRepulsion(cutoff)

    def atom_outputs(self, batch: CrystalBatch) -> Tensor:
        """Compute the energy of each atom, eV, shape ``(atoms,)``."""
        outputs = super().atom_outputs(batch)
        if self.repulsion is not None:
            distance = batch.edge_vector.norm(dim=1)
            outputs = outputs + self.repulsion(batch.atomic_numbers, batch.edge_index, distance)
            self.feature_dict["readout"] = outputs.detach()
        return outputs

    def forward(  # type: ignore[override]  # matgl's order of arguments: that of its potentials, not of its models
        self, g: Any, lat: Tensor | None = None, state_attr: Any = None, l_g: Any = None, **kwargs: Any
    ) -> Any:
        """Predict the energy of each crystal, or what matgl asks of a potential.

        A saved potential can so be given to ``mgl relax``, ``mgl md``, matgl's ``PESCalculator`` and matcalc.

        Args:
            g: any graph that :meth:`as_batch` reads; with ``lat`` one of matgl's converters.
            lat: the lattice beside it, Å.
            state_attr: part of matgl's contract; not read.
            l_g: part of matgl's contract; not read.
            **kwargs: part of matgl's contract; not read.

        Returns:
            Energies in eV, shape ``(crystals,)``. With ``lat`` a tuple: these, forces (eV/Å, shape ``(atoms, 3)``),
            stresses (GPa, shape ``(3 * crystals, 3)``), and a zero in place of a Hessian.
        """
        return super().forward(g) if lat is None else answer_like_matgl(self, g, lat)

    @property
    def model(self) -> PRISMPotential:
        """The model in the potential, as matgl's tools look for it: itself."""
        return self

    @property
    def task(self) -> str:
        """Name of the task that the model is made for (:data:`prism_plugin.tasks.TASKS`)."""
        return "potential"


def element_shares(structures: Sequence[Atoms], elements: Sequence[str]) -> np.ndarray:
    """Return the share of each element among the atoms of each structure, shape ``(structures, elements)``."""
    numbers = [atomic_numbers[symbol] for symbol in elements]
    counts = np.array([np.bincount(one.numbers, minlength=len(chemical_symbols))[numbers] for one in structures])
    return counts / np.array([len(one) for one in structures])[:, None]


def fit_element_refs(structures: Sequence[Atoms], energies: np.ndarray, elements: Sequence[str]) -> tuple[float, ...]:
    """Fit an energy to each element, so that their sums come closest to total energies.

    Least squares per atom; where the compositions hardly differ (by less than a thousandth), the shortest of the
    solutions, so that noise is not taken for a difference of elements.

    Args:
        structures: the crystals.
        energies: their total energies, eV, shape ``(crystals,)``.
        elements: symbols of all elements in them; others among these get 0.

    Returns:
        One energy for each of ``elements``, eV.
    """
    sizes = np.array([len(one) for one in structures])
    solution = np.linalg.lstsq(element_shares(structures, elements), np.asarray(energies) / sizes, rcond=1e-3)[0]
    return tuple(float(value) for value in solution)


def element_corrections(structures: Sequence[Atoms], left: np.ndarray, elements: Sequence[str]) -> tuple[float, ...]:
    """Fit what an initial model leaves of new labels by a number for each element (ridge regression).

    Labels of another functional or code differ from those it knows most of all so. How much the numbers are held back
    is chosen by the mean absolute error when each crystal is left out in turn; if none is best, all are 0.

    Args:
        structures: the training crystals.
        left: labels minus predictions, per atom, shape ``(crystals,)``.
        elements: symbols.

    Returns:
        A number for each of ``elements``, in the unit of ``left``.
    """
    shares = element_shares(structures, elements)
    best, least = np.zeros(len(elements)), float(np.abs(left).mean())
    for ridge in _RIDGES:
        inverse = np.linalg.inv(shares.T @ shares + ridge * np.eye(len(elements)))
        solution = inverse @ (shares.T @ left)
        leverage = np.einsum("ij,jk,ik->i", shares, inverse, shares)
        error = float(np.abs((left - shares @ solution) / (1 - leverage)).mean())
        if error < least:
            best, least = solution, error
    return tuple(map(float, best))


def moved_refs(init: PRISM, changes: Sequence[float]) -> tuple[float, ...]:
    """Add changes to the elements' numbers of an initial model, one for each of its ``element_types``."""
    had = init.arguments["element_refs"] or (0.0,) * len(changes)
    return tuple(ref + change for ref, change in zip(had, changes, strict=True))
