"""The law of total variance over posterior samples.

    mean = ⟨μ_s⟩,   Σ_epistemic = cov_s(μ_s) (divided by S - 1),   Σ_aleatoric = ⟨Σ_s⟩

A pure function that both backends share; it scripts.
"""

from torch import Tensor

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.derivatives import sum_by_graph
from ase_bayesmlip.prediction import Prediction, to_voigt
from ase_bayesmlip.statistics import sample_covariance, sample_variance


def mix(
    graph: AtomicGraph,
    reference_energies: Tensor,
    atomic: Tensor,
    forces: Tensor,
    stresses: Tensor | None,
    atomic_noise: Tensor | None,
    force_noise: Tensor | None,
    members: bool,
) -> Prediction:
    """Moments of the mixture from what each of S samples says.

    Parameters
    ----------
    reference_energies : Tensor of float64, (119,), eV, by atomic number
    atomic : Tensor of float64, (S, n_atoms), eV, interaction energies
    forces : Tensor, (S, n_atoms, 3), eV/Å
    stresses : Tensor or None, (S, n_graphs, 3, 3), eV/Å³
    atomic_noise : Tensor of float64 or None, (n_atoms,), eV², averaged over samples
    force_noise : Tensor of float64 or None, (n_atoms, 3, 3), (eV/Å)², averaged over samples
    members : bool
        Whether to return each sample's energies, forces and stress.
    """
    reference = reference_energies.index_select(0, graph.atomic_numbers)
    total = sum_by_graph(atomic, graph.batch, graph.n_graphs)
    offset = sum_by_graph(reference, graph.batch, graph.n_graphs)
    stress: Tensor | None = None
    stress_cov: Tensor | None = None
    stress_members: Tensor | None = None
    energy_epistemic: Tensor | None = None
    atomic_epistemic: Tensor | None = None
    force_epistemic: Tensor | None = None
    energy_aleatoric: Tensor | None = None
    n_samples = atomic.shape[0]
    if n_samples > 1:
        energy_epistemic = sample_variance(total)
        atomic_epistemic = sample_variance(atomic)
        force_epistemic = sample_covariance(forces)
    if stresses is not None:
        stress = stresses.mean(dim=0)
        if n_samples > 1:
            stress_cov = sample_covariance(to_voigt(stresses))
        if members:
            stress_members = stresses
    if atomic_noise is not None:
        energy_aleatoric = sum_by_graph(atomic_noise, graph.batch, graph.n_graphs)
    energy_members: Tensor | None = None
    force_members: Tensor | None = None
    if members:
        energy_members, force_members = total + offset, forces
    return Prediction(
        energy=total.mean(dim=0) + offset,
        atomic_energies=atomic.mean(dim=0) + reference,
        forces=forces.mean(dim=0),
        stress=stress,
        energy_var_epistemic=energy_epistemic,
        energy_var_aleatoric=energy_aleatoric,
        atomic_energies_var_epistemic=atomic_epistemic,
        atomic_energies_var_aleatoric=atomic_noise,
        forces_cov_epistemic=force_epistemic,
        forces_cov_aleatoric=force_noise,
        stress_cov_epistemic=stress_cov,
        energy_members=energy_members,
        forces_members=force_members,
        stress_members=stress_members,
    )
