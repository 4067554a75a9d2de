"""How predictions change with the weights: Jacobians and Gauss-Newton matrices on labelled data.

With J = ∂(E, F)/∂w, residuals r and the noise Σ of the labels, the generalised Gauss-Newton matrix
of the negative log-likelihood is JᵀΣ⁻¹J, here kept apart for energies and forces:

    G_E = Σ_n J_Eᵀ J_E / σ_E²,    G_F = Σ_n Σ_i J_Fiᵀ Σ_i⁻¹ J_Fi.

The weights are either those of the readout, in which energies are linear so that this is the
Hessian itself, or all weights, for which only the diagonal is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ase_bayesmlip.graph import AtomicGraph, sum_by_graph
from ase_bayesmlip.nn.derivatives import gradients, with_derivative_inputs
from ase_bayesmlip.nn.last_layer import by_element
from ase_bayesmlip.nn.potential import Potential, readout_weights
from ase_bayesmlip.statistics import gaussian_nll, inverse_and_logdet, multivariate_nll
from ase_bayesmlip.training.data import GraphDataset, Labels
from ase_bayesmlip.training.outputs import Outputs, evaluate, outputs_of


class Linearised(NamedTuple):
    """Predictions of a batch to first order in P weights, and what the labels say of them.

    Attributes
    ----------
    energy_jacobian : Tensor, (n_graphs, P), eV
    force_jacobian : Tensor, (n_atoms, 3, P), eV/Å
    energy_residual : Tensor, (n_graphs,), eV, label minus prediction
    force_residual : Tensor, (n_atoms, 3), eV/Å
    energy_var : Tensor, (n_graphs,), eV²
        Noise of the labels: from the heads, or, where they were not trained, 1 eV² per atom.
    forces_cov : Tensor, (n_atoms, 3, 3), (eV/Å)²
        Likewise, or the identity.
    """

    energy_jacobian: Tensor
    force_jacobian: Tensor
    energy_residual: Tensor
    force_residual: Tensor
    energy_var: Tensor
    forces_cov: Tensor

    def cpu(self) -> Linearised:
        """The same on the CPU, where posteriors are made."""
        return Linearised(*(field.cpu() for field in self))

    def moved(self, change: Tensor) -> Linearised:
        """The same after a change of weights, (P,), in which the predictions are linear."""
        return self._replace(
            energy_residual=self.energy_residual - self.energy_jacobian @ change,
            force_residual=self.force_residual - self.force_jacobian @ change,
        )

    def whitened(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Jacobians (m, P) and residuals (m,) of energies, then of forces, in units of the noise.

        With Σ⁻¹ = A Aᵀ the rows are AᵀJ and the residuals Aᵀr.
        """
        deviation = self.energy_var.sqrt()
        inverse, _ = inverse_and_logdet(self.forces_cov)
        whitening = torch.linalg.cholesky(inverse).transpose(1, 2)
        n_weights = self.energy_jacobian.shape[1]
        return (
            self.energy_jacobian / deviation.unsqueeze(1),
            self.energy_residual / deviation,
            torch.bmm(whitening, self.force_jacobian).reshape(-1, n_weights),
            torch.bmm(whitening, self.force_residual.unsqueeze(2)).flatten(),
        )


def linearise_last_layer(
    potential: Potential, graph: AtomicGraph, labels: Labels, resolved: bool = False
) -> Linearised:
    """By the `readout_weights`: for a batch of structures at once, exact for any change of them.

    If `resolved`, each element has its own, in the order of `nn.last_layer.by_element`.
    """
    leaf, positions, _ = with_derivative_inputs(graph, False)
    strata = potential.strata(leaf)
    basis = by_element(strata.basis, strata.species) if resolved else strata.basis
    outputs = outputs_of(potential.output(strata, leaf), [positions], graph, create_graph=False)
    # One derivative at a time: batched ones (is_grads_batched) took ten times as long.
    n_rows = 3 * int(torch.bincount(graph.batch).max())
    by_position = _by_rows if n_rows < basis.shape[1] else _by_columns
    force_jacobian = -by_position(basis, positions, graph).to(torch.float64)
    energy_jacobian = sum_by_graph(basis.detach().T, graph.batch, graph.n_graphs).T
    return Linearised(energy_jacobian, force_jacobian, *_residuals(outputs, labels))


def shift_to(mean: Tensor, potential: Potential) -> Tensor:
    """The mean beside the readout weights of the potential, which elements share, (P,)."""
    weights = readout_weights(potential).detach()
    return mean - weights.repeat(len(mean) // len(weights))


def linearised_at(
    mean: Tensor, potential: Potential, data: GraphDataset, batch: int
) -> Iterator[Linearised]:
    """All of the data, by the readout weights at that mean of them, (P,)."""
    shift = shift_to(mean, potential)
    resolved = len(mean) > len(readout_weights(potential))
    for graph, labels in data.batches(range(len(data)), batch):
        yield linearise_last_layer(potential, graph, labels, resolved).moved(shift)


def _by_columns(basis: Tensor, positions: Tensor, _: AtomicGraph) -> Tensor:
    """Slopes of the summed basis, (n_atoms, 3, P), one derivative for each function."""
    columns = [gradients(column.sum(), [positions], False)[0] for column in basis.unbind(1)]
    return torch.stack(columns, dim=2)


def _by_rows(basis: Tensor, positions: Tensor, graph: AtomicGraph) -> Tensor:
    """The same, one derivative for each coordinate of the k-th atom of every structure.

    Slopes of Σ basis · w by positions are linear in w, and each structure has its own w.
    """
    zeros = basis.new_zeros((graph.n_graphs, basis.shape[1]), requires_grad=True)
    slopes = gradients((basis * zeros[graph.batch]).sum(), [positions], True)[0]
    rows = basis.new_zeros((*positions.shape, basis.shape[1]))
    sizes = torch.bincount(graph.batch)
    first = sizes.cumsum(0) - sizes
    for k in range(int(sizes.max())):
        has = sizes > k
        atoms = first[has] + k
        for axis in range(3):
            rows[atoms, axis] = gradients(slopes[atoms, axis].sum(), [zeros], False)[0][has]
    return rows


def linearise_all(potential: Potential, graph: AtomicGraph, labels: Labels) -> Linearised:
    """By all weights, for one structure: 1 + 3 n_atoms derivatives.

    Raises
    ------
    ValueError
        For a batch of several structures.
    """
    _one_structure(graph)
    outputs = evaluate(potential, graph, False, create_graph=True)
    values = [outputs.energy.sum(), *outputs.forces.flatten()]
    jacobian = torch.stack([_slopes(value, potential) for value in values])
    forces = jacobian[1:].view(-1, 3, jacobian.shape[1])
    return Linearised(jacobian[:1], forces, *_residuals(outputs, labels))


def _one_structure(graph: AtomicGraph) -> None:
    if graph.n_graphs != 1:
        raise ValueError(f"this takes one structure at a time, not {graph.n_graphs}")


def _slopes(value: Tensor, potential: Potential) -> Tensor:
    """Derivatives by all weights as one vector, in float64."""
    parts = gradients(value, list(potential.parameters()), False)
    return torch.cat([part.flatten() for part in parts]).to(torch.float64)


def _residuals(outputs: Outputs, labels: Labels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residuals and noise, the last four fields of `Linearised`."""
    forces = outputs.forces.detach().to(torch.float64)
    energy_var, forces_cov = outputs.energy_var, outputs.forces_cov
    if energy_var is None:
        energy_var = labels.n_atoms.to(torch.float64)
    if forces_cov is None:
        identity = torch.eye(3, dtype=torch.float64, device=forces.device)
        forces_cov = identity.expand(len(forces), 3, 3)
    return (
        labels.energy - outputs.energy.detach(),
        labels.forces.to(torch.float64) - forces,
        energy_var.detach(),
        forces_cov.detach().to(torch.float64),
    )


@dataclass(frozen=True)
class GaussNewton:
    """Curvature of the likelihood, summed over data; matrices (P, P) or their diagonals (P,).

    Attributes
    ----------
    energy, forces : Tensor
        G_E and G_F for the noise that `Linearised` states.
    energy_chi2, forces_chi2 : float
        Squared residuals in units of that noise.
    n_energies, n_forces : int
        Energies, and components of forces.
    """

    energy: Tensor
    forces: Tensor
    energy_chi2: float = 0.0
    forces_chi2: float = 0.0
    n_energies: int = 0
    n_forces: int = 0

    @classmethod
    def of(cls, data: Linearised, diagonal: bool) -> GaussNewton:
        """Of one batch."""
        energy, energy_residual, forces, force_residual = data.whitened()
        return cls(
            (energy**2).sum(0) if diagonal else energy.T @ energy,
            (forces**2).sum(0) if diagonal else forces.T @ forces,
            float((energy_residual**2).sum()),
            float((force_residual**2).sum()),
            len(energy_residual),
            len(force_residual),
        )

    def __add__(self, other: GaussNewton) -> GaussNewton:
        return GaussNewton(
            self.energy + other.energy,
            self.forces + other.forces,
            self.energy_chi2 + other.energy_chi2,
            self.forces_chi2 + other.forces_chi2,
            self.n_energies + other.n_energies,
            self.n_forces + other.n_forces,
        )


def estimated_diagonal(
    potential: Potential,
    graph: AtomicGraph,
    labels: Labels,
    n_probes: int,
    generator: torch.Generator,
) -> GaussNewton:
    """Diagonal of the curvature by all weights for one structure, from random vectors.

    With Σ⁻¹ = A Aᵀ and z ~ N(0, 1), the derivative of zᵀAᵀF by the weights has the second moment
    J_FᵀΣ⁻¹J_F: an unbiased estimate without a Jacobian. The energy, one number, is exact.
    """
    _one_structure(graph)
    outputs = evaluate(potential, graph, False, create_graph=True)
    energy_residual, residual, energy_var, forces_cov = _residuals(outputs, labels)
    energy = _slopes(outputs.energy.sum(), potential) ** 2 / energy_var
    inverse, _ = inverse_and_logdet(forces_cov)
    whitening = torch.linalg.cholesky(inverse)
    forces = torch.zeros_like(energy)
    for _ in range(n_probes):
        z = torch.randn((*residual.shape, 1), generator=generator, dtype=torch.float64)
        cotangent = torch.bmm(whitening, z.to(whitening.device)).squeeze(2)
        forces += _slopes((outputs.forces * cotangent).sum(), potential) ** 2 / n_probes
    return GaussNewton(
        energy.cpu(),
        forces.cpu(),
        float((energy_residual**2 / energy_var).sum()),
        float(torch.einsum("na,nab,nb->", residual, inverse, residual)),
        1,
        residual.numel(),
    )


def predictive_nll(
    data: Linearised, vectors: Tensor | None, precision: Tensor, noise: tuple[float, ...]
) -> Tensor:
    """-log p of labels under noise plus J H⁻¹ Jᵀ, H = V diag(precision) Vᵀ; a sum, ()."""
    energy, forces = data.energy_jacobian, data.force_jacobian
    if vectors is not None:
        energy, forces = energy @ vectors, forces @ vectors
    energy_var = noise[0] * data.energy_var + (energy**2 / precision).sum(dim=1)
    spread = torch.einsum("nap,p,nbp->nab", forces, precision.reciprocal(), forces)
    covariance = noise[1] * data.forces_cov + spread
    return (
        gaussian_nll(data.energy_residual, energy_var).sum()
        + multivariate_nll(data.force_residual, covariance).sum()
    )
