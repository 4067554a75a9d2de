"""Potentials that know the law of their own errors: e²IP, and eIP as a baseline.

The backbone is that of a potential trained on squared errors, weight for weight; the head reads
its features and adds nothing to the energy. In evaluation, and where `detach_features` is set, it
reads copies of the features, so that nothing of it is differentiated.
"""

from typing import Any

import torch

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.evidential.components import ComponentEvidence, ComponentHead
from ase_bayesmlip.nn.evidential.head import Evidence, EvidentialHead
from ase_bayesmlip.nn.potential import Potential, Strata
from ase_bayesmlip.prediction import MemberOutput

HEAD = "head."


class EvidentialPotential(Potential):
    """`Potential` with a normal-inverse-Wishart law of every atom's force error.

    Parameters
    ----------
    irreps : list of list of Irrep
    form : "spd", "iso" or "invariant"
    coupling : float
        See `EvidentialHead`.
    shape : Any
        Arguments of `Potential`.
    """

    def __init__(
        self,
        irreps: list[list[Irrep]],
        form: str,
        coupling: float,
        generator: torch.Generator,
        **shape: Any,
    ) -> None:
        super().__init__(
            irreps=irreps, has_energy_noise=False, covariance="none", generator=generator, **shape
        )
        self.has_energy_noise, self.covariance = True, form
        self.detach_features = False
        n_species = len(shape["atomic_numbers"])
        self.head = EvidentialHead(irreps, shape["channels"], n_species, form, coupling, generator)

    def output(
        self,
        strata: Strata,
        graph: AtomicGraph,  # noqa: ARG002 (potentials with an energy noise of "mean" read it)
        matrices: bool = True,
    ) -> MemberOutput:
        """As `Potential.output`, with the moments of the evidential laws."""
        return self.head.output(strata.energies, self.evidence(strata), matrices)

    def with_evidence(self, graph: AtomicGraph) -> tuple[MemberOutput, Evidence]:
        """The output and the laws that its moments are those of, for training."""
        strata = self.strata(graph)
        evidence = self.evidence(strata)
        return self.head.output(strata.energies, evidence, True), evidence

    def evidence(self, strata: Strata) -> Evidence:
        """The laws of the errors of all atoms."""
        features = strata.features
        if self.detach_features or not self.training:
            features = [x.detach() for x in features]
        noise = self.noise
        return self.head(features, strata.species, noise.force_scale, noise.energy_scale)


class ComponentPotential(Potential):
    """`Potential` with the head of eIP: laws of the Cartesian components, not equivariant."""

    def __init__(self, irreps: list[list[Irrep]], generator: torch.Generator, **shape: Any) -> None:
        super().__init__(
            irreps=irreps, has_energy_noise=False, covariance="none", generator=generator, **shape
        )
        self.covariance = "components"
        self.detach_features = False
        self.head = ComponentHead(irreps, shape["channels"], generator)

    def output(
        self,
        strata: Strata,
        graph: AtomicGraph,  # noqa: ARG002 (potentials with an energy noise of "mean" read it)
        matrices: bool = True,
    ) -> MemberOutput:
        """As `Potential.output`, with the moments of the component-wise laws."""
        return self.head.output(strata.energies, self.evidence(strata), matrices)

    def with_evidence(self, graph: AtomicGraph) -> tuple[MemberOutput, ComponentEvidence]:
        """The output and the laws that its moments are those of, for training."""
        strata = self.strata(graph)
        evidence = self.evidence(strata)
        return self.head.output(strata.energies, evidence, True), evidence

    def evidence(self, strata: Strata) -> ComponentEvidence:
        """The laws of the errors of all force components."""
        features = strata.features
        if self.detach_features or not self.training:
            features = [x.detach() for x in features]
        noise = self.noise
        return self.head(features, strata.species, noise.force_scale, noise.energy_scale)


def freeze_features(potential: Potential) -> None:
    """Leave the head alone to be trained."""
    assert isinstance(potential, EvidentialPotential | ComponentPotential)
    potential.detach_features = True
    for name, parameter in potential.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD))
