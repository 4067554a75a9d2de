"""How a posterior is fitted, apart from what it is."""

from __future__ import annotations

import dataclasses

from ase_bayesmlip.training.distributed import world_size


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How `fit` goes about a run; the result does not depend on it.

    Attributes
    ----------
    resume : bool
        Continue the run that the folder holds; without it such a folder is refused.
    device : str
        ``"cpu"`` or ``"cuda"``.
    jobs : int
        Members at a time, each in a process of its own.
    progress : bool
        Whether to show progress bars.
    """

    resume: bool = False
    device: str = "cpu"
    jobs: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}; it must be 1 or more")
        if world_size() > 1 and self.jobs > 1:
            raise ValueError(
                f"jobs is {self.jobs}, but under torchrun members are trained one after another, "
                "each on all processes; leave it at 1"
            )
