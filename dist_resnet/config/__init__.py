"""What is to be trained: every setting, and the schedule that follows from them. No torch."""

from dist_resnet.config.data import Batch, Data
from dist_resnet.config.model import FAMILIES, CifarModel, ImagenetModel, Model, SpeedrunModel
from dist_resnet.config.recipe import Optim, Scaling, Schedule
from dist_resnet.config.root import Config, differences
from dist_resnet.config.section import key_of, parse_length, require, setting
from dist_resnet.config.training import Tracking, Train

__all__ = [
    "FAMILIES",
    "Batch",
    "CifarModel",
    "Config",
    "Data",
    "ImagenetModel",
    "Model",
    "Optim",
    "Scaling",
    "Schedule",
    "SpeedrunModel",
    "Tracking",
    "Train",
    "differences",
    "key_of",
    "parse_length",
    "require",
    "setting",
]
