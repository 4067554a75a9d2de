"""Names of the labels in the files of frames."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ase_bayesmlip.config.strict import ConfigError

# Taken for stress where no name is given; frames need not have it.
DEFAULT_STRESS = "REF_stress"


@dataclass(frozen=True)
class KeysConfig:
    """Names under which the labels stand in the training files.

    Names of ASE, ``free_energy``, ``forces`` and ``stress``, are those of what its readers found in
    the files of other programs. Folders of DeePMD-kit and ``.npz`` files have names of their own.

    Attributes
    ----------
    energy, forces : str
        In eV, and in eV/Å.
    stress : str or None
        In eV/Å³, 3×3 or in Voigt order (xx, yy, zz, yz, xz, xy), tension positive, as in ASE. None
        is `DEFAULT_STRESS` where a frame has it; a name that is given must be in some frame.
    virial : str or None
        In eV, in the same forms; the stress is -virial / volume.
    """

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    stress: str | None = None
    virial: str | None = None

    @property
    def stress_or_default(self) -> str:
        """The name under which a stress is looked for."""
        return self.stress or DEFAULT_STRESS


def check_keys(keys: KeysConfig) -> None:
    """Raise `ConfigError` for names of labels that cannot be meant.

    For whoever trains. Runs and files of before must still be read.
    """
    if "virial" in keys.stress_or_default.lower():
        raise ConfigError(
            f"data.keys.stress is '{keys.stress}', which is no stress by its name: training would "
            f"take -volume times it. For virials in eV give data.keys.virial: {keys.stress}"
        )
    if keys.stress is not None and keys.virial is not None:
        raise ConfigError(
            f"data.keys names a stress, '{keys.stress}', and a virial, '{keys.virial}'; give one"
        )
    names = [name for name in dataclasses.astuple(keys) if name is not None]
    if not all(name.strip() for name in names):
        raise ConfigError("data.keys: a name is empty; give the name of the label in the files")
    if len(set(names)) < len(names):
        raise ConfigError(f"data.keys: two labels have one name among {', '.join(names)}")
