"""Students and teachers."""

from fastlg.models.build import build_model, new_model
from fastlg.models.resnet_cifar import CifarResNet, resnet20, resnet56, resnet110
from fastlg.models.student import Student, guided_blocks

__all__ = ["CifarResNet", "Student", "build_model", "guided_blocks", "new_model", "resnet110", "resnet20", "resnet56"]
