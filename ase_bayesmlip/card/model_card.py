"""The model card: its fields, and how it is read from a served file.

This module is free of torch, so that ``bayesmlip inspect model.pt`` reads a card with `zipfile`
alone and never executes what it inspects.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ase_bayesmlip.card.describe import html_table, summary
from ase_bayesmlip.card.kinds import CardError
from ase_bayesmlip.card.rules import UNITS, check_card

FORMAT_VERSION = 1
CARD_NAME = "extra/model_card.json"

# Posteriors whose epistemic part is none, or tells foreign frames from known ones less well than
# the distance of features does. That of e²IP in mode "leverage" is made of that distance.
NO_DETECTOR = ("point", "evidential", "ivon", "swag")

# What reading a damaged archive may raise.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Everything a user may want to know of a served file without running it.

    Attributes
    ----------
    kind : str
        Posterior: ``"ensemble"``, ``"point"``, ...
    n_members : int
        Networks mixed in the file.
    n_draws : int
        Drawn readouts of each network, which give the epistemic covariance of forces at the cost
        of one derivative each; 0 where it comes from the spread of the networks alone.
    seed : int or None
        Of the draw that made the file.
    backbone : str
    cutoff : float, Å
    atomic_numbers : list of int
        Elements the model knows.
    dtype : str
        ``"float32"`` or ``"float64"``.
    reference_energies : dict of str to float, eV
        Energy of the isolated atom by chemical symbol.
    ddof : int
        Spread over S samples divides by S - ddof; 0 where their mean is known (draws of one
        network).
    anchored : bool or None
        Whether a lone atom has exactly that energy, without variance. Otherwise what the file says
        of it is unknown; None in files from before there was a choice.
    has_epistemic : bool
        Whether there is a spread: of two or more networks, or of draws.
    evidential : bool
        Whether each network gives the law of its own errors; forces then have the epistemic part
        of that law, and energies where `has_aleatoric_energy`.
    has_aleatoric_energy, has_aleatoric_forces : bool
        Whether training fitted the noise of energies, and of forces.
    n_parameters : int
        Of one member.
    training : dict
        Data files, checksums, number of frames, errors on the validation set; ``train_frames`` and
        ``valid_frames`` are digests of the single structures, see `structures.overlap`.
    home : dict
        What was fitted to frames of the run when the file was written, and ``n_train`` and
        ``n_valid``, the number of them; ``n_features`` of an atom, whose distance from those of the
        training the file gives; the ``gauge`` of atomic energies in words; the factors of the
        ``noise`` of ``energy`` and ``forces``, and of both the share of χ² that a ``tenth`` of the
        validation frames carries. Empty where they were not given.
    calibration : dict
        ``n_frames``, ``sha256`` and ``scores`` (name -> sorted scores of the calibration frames),
        from which a monitor turns a false-alarm rate into a threshold, their ``series`` (the
        ``scores`` in the order of the frames, with ``trajectory`` and ``n_atoms`` of each; not in
        older files), and digests of its ``frames``. Empty when not calibrated.
    recalibrations : list of dict
        One record each time that ``bayesmlip calibrate`` was run, the last of which is in force:
        ``method``, ``sha256``, ``frames`` (digests), ``n_frames`` and ``n_atoms`` of the
        calibration frames, the ``origin`` of the variances and their ``laws``, ``factors``
        that the variances of the file before were multiplied by, ``levels`` with the ``conformal``
        and ``isotonic`` sizes of regions, and ``numbers`` before and after. See
        `calibration.Calibration`.
    config : dict
        The resolved training configuration.
    probe : dict
        A small structure with its expected energy, forces and variances: the self-test on load.
    compiled : list of dict
        Programs compiled for one machine each, kept beside the TorchScript program: ``device``,
        ``dtype``, ``machine``, ``torch``, ``table_error`` of the radial tables and ``deviation``
        of each field from the reference, both relative, and ``sha256`` of each part
        (``program.pt2``, ...), which is checked before the part is used.
    versions : dict of str to str
    unfinished : list of str
        What is missing of the training, where it had not come to its end.
    created : str
        ISO date and time.
    format_version : int
        Append-only: a later version only adds fields.
    units : dict of str to str
    """

    kind: str
    n_members: int
    backbone: str
    cutoff: float
    atomic_numbers: list[int]
    dtype: str
    reference_energies: dict[str, float]
    has_epistemic: bool
    has_aleatoric_energy: bool
    has_aleatoric_forces: bool
    n_parameters: int
    ddof: int = 1
    n_draws: int = 0
    evidential: bool = False
    anchored: bool | None = None
    seed: int | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    home: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)
    recalibrations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe: dict[str, Any] = dataclasses.field(default_factory=dict)
    compiled: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    unfinished: list[str] = dataclasses.field(default_factory=list)
    created: str = ""
    format_version: int = FORMAT_VERSION
    units: dict[str, str] = dataclasses.field(default_factory=lambda: dict(UNITS))

    def __repr__(self) -> str:
        return f"<ModelCard: {summary(self)}>"

    def _repr_html_(self) -> str:
        return html_table(self)

    @property
    def lazy(self) -> bool:
        """Whether covariances of forces take work that a step may leave out."""
        return self.n_draws > 0 or (self.evidential and self.n_members == 1)

    @property
    def has_feature_distance(self) -> bool:
        """Whether the file knows how far the features of an atom are from the training's."""
        return bool(self.home.get("n_features"))

    @property
    def has_score(self) -> bool:
        """Whether the file gives a score that a monitor can take."""
        return self.has_epistemic or self.has_feature_distance

    @property
    def default_score(self) -> str:
        """The score of a monitor that is not told one: the best detector that the file has."""
        evidence = self.config.get("loss", {}).get("evidence", {})
        own = self.kind not in NO_DETECTOR or (
            self.kind == "evidential" and evidence.get("mode") == "leverage"
        )
        if self.has_feature_distance and not own:
            return "feature_distance_max"
        return "forces_epistemic_max"

    @property
    def origin(self) -> dict[str, Any]:
        """What the epistemic covariances are made of: the fields of `metrics.Origin`.

        A calibrated file keeps the law that its factors were fitted with. Files from before laws
        were recorded took every error for a Gaussian, and spreads without noise for spheres.
        Networks with draws in each of them have a sum of two spreads, which follows no law of one:
        it counts as known.
        """
        if self.recalibrations:
            record = self.recalibrations[-1]
            return record.get("origin", {"spherical": record.get("shape") == "ball"})
        if not self.has_epistemic or self.evidential:
            return {}
        if self.n_draws:
            return {"n_draws": self.n_draws} if self.n_members == 1 else {}
        return {"n_members": self.n_members} if self.ddof == 1 else {}

    def to_json(self) -> str:
        """The card as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, source: str = "model card") -> ModelCard:
        """Read a card; unknown fields of the same format version are ignored.

        Raises
        ------
        ValueError
            If the text is no card, lacks a required field, holds one that cannot be (it is named),
            or was written by a newer format.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: the model card is not valid JSON ({error})") from error
        if not isinstance(content, dict) or "format_version" not in content:
            raise ValueError(f"{source}: the model card states no format_version")
        version = content["format_version"]
        if type(version) is not int:
            raise ValueError(f"{source}: format_version is {version!r}, not an integer")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{source}: format version {version} is newer than {FORMAT_VERSION}, the newest "
                "this installation reads; upgrade with `pip install -U ase-bayesmlip`"
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - content.keys())
        if missing:
            raise ValueError(f"{source}: the model card lacks {', '.join(missing)}")
        try:
            check_card(content)
        except CardError as error:
            raise ValueError(
                f"{source}: in the model card {error}; take the file from where it was written, "
                "or write it again with `bayesmlip serve`"
            ) from error
        return cls(**{name: value for name, value in content.items() if name in fields})


def read_card(path: str | Path) -> ModelCard:
    """Read the model card of a served file without importing torch.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a served model, is cut short, or is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/" + CARD_NAME)]
            text = archive.read(names[0]).decode("utf-8") if len(names) == 1 else ""
    except DAMAGE as error:
        raise ValueError(
            f"{path} is not a served model, or is cut short ({error}); write it again with "
            "`bayesmlip serve RUN -o model.pt`"
        ) from error
    if len(names) != 1:
        raise ValueError(
            f"{path} is an archive {'with two model cards' if names else 'without a model card'} "
            f"({CARD_NAME}): not a file written by `bayesmlip serve`"
        )
    return ModelCard.from_json(text, source=str(path))
