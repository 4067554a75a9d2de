"""How a posterior is fitted, apart from what it is."""

from __future__ import annotations

import dataclasses


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
