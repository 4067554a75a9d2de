"""How a run of ASE is ended from within: every kind of dynamics and relaxation, or a refusal.

ASE's loops go on while ``nsteps < max_steps``. Some classes have loops of their own.
"""

from __future__ import annotations

from typing import Any

from ase.optimize.sciopt import Converged, SciPyGradientlessOptimizer, SciPyOptimizer

from ase_bayesmlip.md.constraints import ase_names

# Classes whose loop nothing ends from within, and what to use instead.
_ENDLESS = {
    "BasinHopping": "monitor a relaxation (BFGS, FIRE, LBFGS) of your own",
    "SwitchLangevin": "use Langevin",
}


class Brake:
    """Ends the run of one dynamics or relaxation after the present step.

    Optimizers that SciPy drives do not look at ``max_steps``. They end when their callback raises
    `Converged`, so theirs is wrapped; the run can go on afterwards as with the others.

    Raises
    ------
    TypeError
        If runs of this class cannot be ended, or tell nothing of forces.
    """

    def __init__(self, dyn: Any) -> None:
        self._dyn = dyn
        self._pulled = False
        kind = type(dyn).__name__
        for name, instead in _ENDLESS.items():
            if name in ase_names(type(dyn)):
                raise TypeError(
                    f"a run of {kind} cannot be ended from within, so that a monitor could not "
                    f"stop it; {instead}"
                )
        if isinstance(dyn, SciPyGradientlessOptimizer):
            raise TypeError(
                f"{kind} asks for energies only and cannot be stopped from within; a monitor needs "
                "the forces of each step: use BFGS, FIRE or LBFGS"
            )
        if isinstance(dyn, SciPyOptimizer):
            self._wrap(dyn)

    def pull(self) -> None:
        """End the run."""
        self._pulled = True
        self._dyn.max_steps = self._dyn.nsteps

    def _released(self) -> bool:
        """Whether the brake was pulled; it no longer is."""
        pulled, self._pulled = self._pulled, False
        return pulled

    def _wrap(self, dyn: Any) -> None:
        after_step, minimise = dyn.callback, dyn.call_fmin

        def callback(x: Any) -> None:
            after_step(x)
            if self._released():
                raise Converged

        def call_fmin(fmax: float, steps: int) -> None:
            # A run that was stopped on its first frame, which is shown before SciPy is called.
            if not self._released():
                minimise(fmax, steps)

        dyn.callback, dyn.call_fmin = callback, call_fmin
