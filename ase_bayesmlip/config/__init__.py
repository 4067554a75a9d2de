"""Configuration as data: `run` is the whole, `keys`, `loss` and `posterior` its parts."""

from __future__ import annotations

from ase_bayesmlip.config.keys import KeysConfig, check_keys
from ase_bayesmlip.config.loss import EvidenceConfig, LossConfig
from ase_bayesmlip.config.run import (
    Config,
    DataConfig,
    ModelConfig,
    SeedsConfig,
    TrainingConfig,
    completed,
    load_config,
    to_dict,
)
from ase_bayesmlip.config.strict import ConfigError, from_dict

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "EvidenceConfig",
    "KeysConfig",
    "LossConfig",
    "ModelConfig",
    "SeedsConfig",
    "TrainingConfig",
    "check_keys",
    "completed",
    "from_dict",
    "load_config",
    "to_dict",
]
