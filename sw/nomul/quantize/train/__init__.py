"""Train a quantized network: weight rules, and one loop. Needs torch."""

from .loop import Progress, TrainConfig, accuracy, show, train, training_device
from .rules import Absmean, Discrete, StraightThrough, Tga, Ttq, WeightRule

__all__ = ["Absmean", "Discrete", "Progress", "StraightThrough", "Tga", "TrainConfig", "Ttq", "WeightRule", "accuracy",
           "show", "train", "training_device"]
