"""Everything a run can be told, typed; one YAML file plus ``section.key=value`` overrides.

Each part of fastlg receives its own section; only the wiring and what stands above it see the whole.
"""

from fastlg.config.keys import dotted
from fastlg.config.load import (
    config_folders,
    config_from,
    find_config,
    load_config,
    read_saved_config,
    read_tree,
    save_config,
    saved_config,
    shipped_configs,
)
from fastlg.config.overrides import parse_overrides
from fastlg.config.sections import (
    AugmentConfig,
    DataConfig,
    DrlocConfig,
    EngineConfig,
    GuidanceConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PaperRow,
    PretrainConfig,
    RunConfig,
    TeacherConfig,
)
from fastlg.config.whole import Config

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DrlocConfig",
    "EngineConfig",
    "GuidanceConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "PaperRow",
    "PretrainConfig",
    "RunConfig",
    "TeacherConfig",
    "config_folders",
    "config_from",
    "dotted",
    "find_config",
    "load_config",
    "parse_overrides",
    "read_saved_config",
    "read_tree",
    "save_config",
    "saved_config",
    "shipped_configs",
]
