"""What so many frames can promise: the reach of a split-conformal quantile."""

from __future__ import annotations

import math


def reachable_rate(n_frames: float) -> float:
    """Smallest false-alarm rate that the scores of so many exchangeable frames can promise."""
    return 1.0 / (n_frames + 1)


def frames_needed(rate: float) -> int:
    """How many frames a rate needs; a guaranteed coverage is one minus a rate."""
    return math.ceil(1.0 / rate - 1.0 - 1e-9)


def promise(n_frames: float, regions: bool = False, usual: float = 0.01) -> str:
    """Which rates, and coverages of regions, so many frames reach, and what `usual` needs."""
    rate = reachable_rate(n_frames)
    words = f"false-alarm rates from {100 * rate:.2g} % on"
    words += f" and regions of up to {100 * (1 - rate):.4g} % coverage" * regions
    few = f" ({100 * usual:g} % needs {frames_needed(usual)} frames)" * (rate > usual)
    return f"{words} can be promised{few}"
