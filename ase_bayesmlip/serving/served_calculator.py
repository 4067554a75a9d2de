"""What can be changed in a calculator that serves a model, and how it is copied and dropped."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from ase.calculators.calculator import Calculator

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.serving.runtime import LoadedModel, load_model


class ServedCalculator(Calculator):
    """A calculator around a loaded model, whose settings are its `parameters` and nothing else.

    Copies share the model. A pickle (of atoms that carry the calculator, too) holds the path of the
    file, its checksum and the settings; the model is loaded anew, see `LoadedModel`.
    """

    model: LoadedModel

    def __repr__(self) -> str:
        return repr(self.model).replace(type(self.model).__name__, type(self).__name__, 1)

    @property
    def card(self) -> ModelCard:
        """Card of the file."""
        return self.model.card

    @property
    def return_members(self) -> bool:
        """Whether `results` holds what each member predicts; `set` changes it."""
        return bool(self.parameters["return_members"])

    @property
    def lazy(self) -> bool:
        """Whether `results` leaves out what takes work of its own; `set` changes it."""
        return bool(self.parameters["lazy"])

    @abstractmethod
    def _configure(self, model: LoadedModel, skin: float, return_members: bool, lazy: bool) -> None:
        """Put settings in force, all or, with an error, none."""

    def set(self, **settings: Any) -> dict[str, Any]:
        """Change settings of the constructor; another model, device, dtype or backend is loaded.

        Results are dropped if anything changes, and `parameters` says what is in force.

        Returns
        -------
        dict
            What changed, with its new value.

        Raises
        ------
        TypeError
            For a setting that does not exist; the nearest one is named.
        ValueError, FileNotFoundError
            As the constructor; nothing is changed then.
        """
        if not settings:  # as ASE's own constructor calls it
            return {}
        before = dict(self.parameters)
        _check_names(settings, before)
        new, model = before | settings, self.model
        if isinstance(new["model"], LoadedModel):
            raise TypeError("set takes the path of a model; for a loaded one make a calculator")
        new["device"] = new["device"] or "cpu"
        if any(new[name] != before[name] for name in ("model", "device", "dtype", "backend")):
            # Without a word on the backend, what was asked for at first is asked for again.
            backend = settings.get("backend", model.asked_backend)
            model = load_model(new["model"], new["device"], new["dtype"], backend)
        self._configure(model, new["skin"], new["return_members"], new["lazy"])
        changed = {name: value for name, value in self.parameters.items() if value != before[name]}
        if changed:
            self.reset()
        return changed

    def get_spin_polarized(self) -> bool:
        """False: there is no spin.

        ASE gives an instance without this method a bound one, a reference to itself, with which a
        calculator that is dropped would keep its memory until Python looks for such circles.
        """
        return False


def _check_names(settings: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"there is no setting {name!r}; {hint}")
