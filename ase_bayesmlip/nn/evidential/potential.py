"""Potentials that know the law of their own errors: e²IP and its baselines, by their head.

The backbone is that of a potential trained on squared errors, weight for weight; the head reads
its features and adds nothing to the energy. In evaluation, and where `detach_features` is set, it
reads copies of the features, so that nothing of it is differentiated.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.evidential.components import ComponentEvidence
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.heads import NoiseHeads
from ase_bayesmlip.nn.pairs import quiet_if_alone
from ase_bayesmlip.nn.potential import Potential, Strata
from ase_bayesmlip.prediction import MemberOutput

HEAD = "head."


class EvidentialPotential(Potential):
    """`Potential` with the law of every atom's force error.

    Parameters
    ----------
    make_head : callable
        () -> `EvidentialHead` or one of its kind; called once the backbone has drawn its weights.
    shape : Any
        Arguments of `Potential`.
    """

    def __init__(self, make_head: Callable[[], nn.Module], **shape: Any) -> None:
        super().__init__(noise=NoiseHeads(), **shape)
        self.head = make_head()
        self.has_energy_noise, self.has_force_noise = bool(self.head.has_energy_noise), True
        self.detach_features = False

    def output(
        self,
        strata: Strata,
        graph: AtomicGraph,  # noqa: ARG002 (noise of the labels may read it)
        lazy: bool = False,
    ) -> MemberOutput:
        """As `Potential.output`, with the moments of the evidential laws."""
        output = self.head.output(strata.energies, self.evidence(strata), lazy)  # type: ignore[operator]
        return quiet_if_alone(output, strata.presence)

    def with_evidence(
        self, graph: AtomicGraph
    ) -> tuple[MemberOutput, Evidence | ComponentEvidence]:
        """The output and the laws that its moments are those of, for training."""
        strata = self.strata(graph)
        law = self.evidence(strata)
        return self.head.output(strata.energies, law, False), law  # type: ignore[operator]

    def evidence(self, strata: Strata):  # type: ignore[no-untyped-def]
        """The laws of the errors of all atoms; of what type, TorchScript must ask the head."""
        features = strata.features
        if self.detach_features or not self.training:
            features = [x.detach() for x in features]
        noise = self.noise
        return self.head(features, strata.species, noise.force_scale, noise.energy_scale)


def freeze_features(potential: Potential) -> None:
    """Leave the head alone to be trained."""
    assert isinstance(potential, EvidentialPotential)
    potential.detach_features = True
    for name, parameter in potential.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD))
