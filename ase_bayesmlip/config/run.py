"""Configuration as data: frozen dataclasses, read strictly from YAML.

An unknown key, a wrong type or a value outside its range is an error that names the key by its
path and, for a misspelt key, the nearest valid one. This module is free of torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ase_bayesmlip.config.keys import KeysConfig, check_keys
from ase_bayesmlip.config.loss import EVIDENTIAL_LOSSES, LossConfig, loss_rules
from ase_bayesmlip.config.posterior import EnsembleConfig, PosteriorConfig, posterior_rules
from ase_bayesmlip.config.strict import ConfigError, Rule, from_dict
from ase_bayesmlip.config.yaml_file import read_yaml


@dataclass(frozen=True)
class DataConfig:
    """Where the labelled frames are.

    A path may hold ``*``, ``?`` and ``**``, environment variables, and an ASE slice of each of its
    files: ``$DATA/*/vasprun.xml@::10``. Several paths are given as a list. Relative paths are
    relative to the configuration file.

    Attributes
    ----------
    train : path or list of paths
    valid : path, list of paths or None
        Without it `valid_fraction` of the training frames is held out.
    calibration : path, list of paths or None
        Frames that fix the thresholds of the monitor; never used in training.
    reference_energies : path, mapping or "fit"
        File of isolated atoms, symbol -> eV, or a least-squares fit to the training frames.
    units : "eV" or "kcal/mol"
        Energy unit of ``.npz`` files (rMD17 and MD22 are in kcal/mol); other files are in eV.
    """

    train: str | list[str]
    valid: str | list[str] | None = None
    calibration: str | list[str] | None = None
    reference_energies: str | dict[str, float] = "fit"
    valid_fraction: float = 0.1
    keys: KeysConfig = field(default_factory=KeysConfig)
    units: Literal["eV", "kcal/mol"] = "kcal/mol"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the potential.

    Attributes
    ----------
    backbone : "race" or "race_plus"
        The published linear chain, or the same message passing with a product of densities.
    cutoff : float, Å
    n_layers : int
    hidden_irreps : str
        e3nn notation with one multiplicity for all irreps, e.g. ``"32x0e + 32x1o + 32x2e"``.
    l_max : int
        Highest degree of the spherical harmonics of an edge.
    n_radial : int
        Bessel functions.
    envelope_power : int
        p of the polynomial envelope (2 in RACE).
    radial_hidden : list of int
        Widths of the radial network.
    readout_hidden : int
    covariance : "spd", "cholesky", "iso", "none" or "invariant"
        Form of the aleatoric force covariance; "cholesky" is the published, frame-dependent one.
        "invariant", for ``loss.kind: evidential`` alone, has the logarithm of the matrix from six
        invariants: the baseline that does not rotate with the structure.
    energy_noise : "sum" or "mean"
        Energy variance Σ exp(s_i), or the published exp ⟨s_i⟩, which does not grow with size.
    anchor : bool
        Give a lone atom exactly its reference energy, without variance, if those are given and not
        fitted. Set it to false for given energies that are not those of isolated atoms.
    repulsion : bool
        Add the ZBL repulsion of atoms that are closer than the sum of their covalent radii, and
        show the network no distances far below the shortest of its training.
    """

    backbone: Literal["race", "race_plus"] = "race_plus"
    cutoff: float = 5.0
    n_layers: int = 2
    hidden_irreps: str = "32x0e + 32x1o"
    l_max: int = 2
    n_radial: int = 8
    envelope_power: int = 2
    radial_hidden: list[int] = field(default_factory=lambda: [64, 64])
    readout_hidden: int = 64
    covariance: Literal["spd", "cholesky", "iso", "none", "invariant"] = "spd"
    energy_noise: Literal["sum", "mean"] = "sum"
    anchor: bool = True
    repulsion: bool = True


@dataclass(frozen=True)
class TrainingConfig:
    """How training runs.

    Attributes
    ----------
    epochs : int
    batch_size : int
        Structures per step.
    learning_rate : float
    schedule : "cosine" or "constant"
        Over the steps, after a short linear warm-up.
    warmup_steps : int
    ema_decay : float in [0, 1)
        True exponential moving average of the weights, used for evaluation and serving.
    clip_norm, weight_decay : float
        Largest global norm of the gradient, and decay of the weights, of AdamW with AMSGrad.
    patience : int
        Evaluations without improvement before training stops early; 0 never stops early.
    evaluate_every : int
        Epochs between evaluations on the validation frames.
    time_limit : float or None, minutes
        For the training of all members, side by side or one after another, with the epochs of a
        posterior that follow it. The schedule fits itself to it, to an epoch.
    dtype : "float32" or "float64"
    """

    epochs: int = 100
    batch_size: int = 5
    learning_rate: float = 0.04
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    ema_decay: float = 0.995
    clip_norm: float = 10.0
    weight_decay: float = 0.0
    patience: int = 0
    evaluate_every: int = 5
    time_limit: float | None = None
    dtype: Literal["float32", "float64"] = "float32"


@dataclass(frozen=True)
class SeedsConfig:
    """Separate seeds, so that one source of randomness can be varied at a time."""

    data: int = 0
    initialisation: int = 0
    shuffling: int = 0


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    posterior: PosteriorConfig = field(default_factory=EnsembleConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)

    def __post_init__(self) -> None:
        _check_ranges(self)


def _check_ranges(config: Config) -> None:
    rules = _model_rules(config.model) + loss_rules(config.loss) + _training_rules(config.training)
    rules += posterior_rules(config.posterior)
    fraction = config.data.valid_fraction
    rules.append(("data.valid_fraction", fraction, 0 < fraction < 1, "between 0 and 1"))
    for name, seed in dataclasses.asdict(config.seeds).items():
        rules.append((f"seeds.{name}", seed, 0 <= seed < 2**62, "from 0 to 2^62 - 1"))
    for name, value, valid, allowed in rules:
        if not valid:
            raise ConfigError(f"{name} is {value}; it must be {allowed}")
    if config.loss.kind == "nll_jef" and config.model.covariance == "none":
        raise ConfigError(
            "loss.kind nll_jef needs a force covariance, but model.covariance is 'none'; choose "
            "spd, iso or cholesky, or loss.kind nll_e or mse"
        )
    _check_evidence(config)
    if config.posterior.kind == "ivon" and config.loss.kind != "nll_jef":
        raise ConfigError(
            f"posterior.kind ivon needs a likelihood of energies and forces, but loss.kind is "
            f"{config.loss.kind}; set it to nll_jef, or choose another posterior"
        )


def _check_evidence(config: Config) -> None:
    """Which loss, covariance and posterior go together where forces have evidential laws."""
    loss, covariance, posterior = config.loss.kind, config.model.covariance, config.posterior.kind
    if loss == "evidential" and covariance not in ("spd", "iso", "invariant"):
        raise ConfigError(
            f"loss.kind evidential needs model.covariance spd, iso or invariant, not {covariance}"
        )
    if covariance == "invariant" and loss != "evidential":
        raise ConfigError(
            f"model.covariance invariant is for loss.kind evidential, not {loss}; choose spd"
        )
    if posterior == "evidential" and loss not in EVIDENTIAL_LOSSES:
        raise ConfigError(
            f"posterior.kind evidential needs loss.kind evidential (or eip), not {loss}; set it"
        )
    others = ("evidential", "ensemble", "laplace", "swag")
    allowed = {"evidential": others, "eip": others[:2]}.get(loss, (posterior,))
    if posterior not in allowed:
        raise ConfigError(
            f"loss.kind {loss} goes with posterior.kind {' or '.join(allowed)}, not {posterior}"
        )


def _model_rules(model: ModelConfig) -> list[Rule]:
    cutoff, widths, readout = model.cutoff, model.radial_hidden, model.readout_hidden
    return [
        ("model.cutoff", cutoff, 0 < cutoff < math.inf, "positive and finite"),
        ("model.n_layers", model.n_layers, model.n_layers >= 1, "at least 1"),
        ("model.l_max", model.l_max, 0 <= model.l_max <= 6, "from 0 to 6"),
        ("model.n_radial", model.n_radial, model.n_radial >= 1, "at least 1"),
        ("model.envelope_power", model.envelope_power, model.envelope_power >= 2, "at least 2"),
        ("model.radial_hidden", widths, all(width >= 1 for width in widths), "widths of 1 or more"),
        ("model.readout_hidden", readout, readout >= 1, "at least 1"),
    ]


def _training_rules(training: TrainingConfig) -> list[Rule]:
    rate, decay = training.learning_rate, training.ema_decay
    decays = 0 <= training.weight_decay < math.inf
    rules: list[Rule] = [
        ("training.learning_rate", rate, 0 < rate < math.inf, "positive and finite"),
        ("training.ema_decay", decay, 0 <= decay < 1, "in [0, 1)"),
        ("training.weight_decay", training.weight_decay, decays, "finite and not negative"),
        ("training.clip_norm", training.clip_norm, training.clip_norm > 0, "positive"),
    ]
    for name in ("epochs", "batch_size", "evaluate_every"):
        value = getattr(training, name)
        rules.append((f"training.{name}", value, value >= 1, "at least 1"))
    for name in ("warmup_steps", "patience"):
        value = getattr(training, name)
        rules.append((f"training.{name}", value, value >= 0, "not negative"))
    limit = training.time_limit
    if limit is not None:
        rules.append(("training.time_limit", limit, 0 < limit < math.inf, "positive and finite"))
    return rules


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain data."""
    return dataclasses.asdict(config)


def completed(stored: Any) -> Any:
    """The configuration that a run or a file has kept, with what could not be chosen then."""
    if not (isinstance(stored, dict) and isinstance(stored.get("model", {}), dict)):
        return stored
    before = {"anchor": False, "repulsion": False}
    return {**stored, "model": {**before, **stored.get("model", {})}}


def load_config(path: str | Path) -> Config:
    """Read a YAML configuration; relative data paths become relative to the file.

    Raises
    ------
    FileNotFoundError, ConfigError
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a configuration file (YAML)")
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    content = read_yaml(path)
    config = from_dict(Config, content if content is not None else {})
    check_keys(config.data.keys)
    return _resolve_paths(config, path.resolve().parent)


def _resolve_paths(config: Config, folder: Path) -> Config:
    def resolve(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if not isinstance(value, str):
            return value
        expanded = os.path.expandvars(value)
        if "$" in expanded:
            raise ConfigError(f"path {value!r} names an environment variable that is not set")
        return str(folder / Path(expanded).expanduser())

    data, posterior = config.data, config.posterior
    reference = data.reference_energies
    if isinstance(reference, str) and reference != "fit":
        reference = resolve(reference)
    data = dataclasses.replace(
        data,
        train=resolve(data.train),
        valid=resolve(data.valid),
        calibration=resolve(data.calibration),
        reference_energies=reference,
    )
    if hasattr(posterior, "start_from"):
        posterior = dataclasses.replace(posterior, start_from=resolve(posterior.start_from))
    return dataclasses.replace(config, data=data, posterior=posterior)
