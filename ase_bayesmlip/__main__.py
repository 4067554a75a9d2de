"""``python -m ase_bayesmlip``, as ``bayesmlip``; torchrun starts it with ``-m``."""

import sys

from ase_bayesmlip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
