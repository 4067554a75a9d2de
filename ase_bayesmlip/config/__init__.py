"""Configuration as data: `run` is the whole, `loss` and `posterior` its parts."""

from __future__ import annotations

from ase_bayesmlip.config.loss import EvidenceConfig, LossConfig
from ase_bayesmlip.config.run import (
    Config,
    DataConfig,
    KeysConfig,
    ModelConfig,
    SeedsConfig,
    TrainingConfig,
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
    "from_dict",
    "load_config",
    "to_dict",
]
