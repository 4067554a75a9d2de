"""The variant of e²IP whose covariances come from invariants alone: a baseline."""

from torch import Tensor

from ase_bayesmlip.nn.evidential.head import EvidentialHead


class InvariantHead(EvidentialHead):
    """`EvidentialHead` with 2e components from five invariants: they do not rotate."""

    n_tensor_scalars = 5

    def tensor(self, raw: Tensor, hidden: Tensor, features: list[Tensor]) -> Tensor:  # noqa: ARG002
        """2e components of the logarithm of the scale, (n, 5)."""
        return raw[:, 5:]
