"""Run settings: TOML files and command-line options become one validated, frozen object."""

from hessrmt.config.averaging import (
    AveragedNetwork,
    AveragedRate,
    BudgetConfig,
    BudgetPreset,
    IterateAveragingConfig,
    IterateAveragingPreset,
)
from hessrmt.config.commands import LevelsConfig, SpectrumConfig, TrainConfig
from hessrmt.config.density import DensityConfig
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
from hessrmt.config.puzzles import Family, PuzzlesConfig, PuzzlesPreset, ReferenceLine
from hessrmt.config.settings import Dtype, Settings, SettingsT, load_settings
from hessrmt.config.simulate import SimulateConfig

__all__ = [
    "AnyExperiment",
    "AveragedNetwork",
    "AveragedRate",
    "BudgetConfig",
    "BudgetPreset",
    "DensityConfig",
    "Dtype",
    "Family",
    "IterateAveragingConfig",
    "IterateAveragingPreset",
    "LevelsConfig",
    "LossModelConfig",
    "LossModelPanel",
    "LossModelPreset",
    "NormalizeConfig",
    "PuzzlesConfig",
    "PuzzlesPreset",
    "ReferenceLine",
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
