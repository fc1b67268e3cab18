"""Run settings: TOML files and command-line options become one validated, frozen object."""

from hessrmt.config.commands import LevelsConfig, SpectrumConfig, TrainConfig
from hessrmt.config.experiments import (
    AnyExperiment,
    LossModelConfig,
    LossModelPanel,
    LossModelPreset,
    SpacingsConfig,
    SpacingsPreset,
    Unreduced,
)
from hessrmt.config.normalize import NormalizeConfig
from hessrmt.config.settings import Dtype, Settings, SettingsT, load_settings
from hessrmt.config.simulate import SimulateConfig

__all__ = [
    "AnyExperiment",
    "Dtype",
    "LevelsConfig",
    "LossModelConfig",
    "LossModelPanel",
    "LossModelPreset",
    "NormalizeConfig",
    "Settings",
    "SettingsT",
    "SimulateConfig",
    "SpacingsConfig",
    "SpacingsPreset",
    "SpectrumConfig",
    "TrainConfig",
    "Unreduced",
    "load_settings",
]
