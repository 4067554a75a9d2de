"""How many cases the fuzz tests try; see ``tests/fuzz/README.md``."""

import os


def n_cases(few: int) -> int:
    """`few` in the test suite, ``BAYESMLIP_FUZZ`` where that is set."""
    return int(os.environ.get("BAYESMLIP_FUZZ", few))
