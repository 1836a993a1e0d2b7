"""Networks by name: the book's, the papers' teachers and students, and torchvision's and timm's classifiers.

Each is a plain module whose `forward(images)` returns logits and that `icd.scores.score` can read.
"""

from icd.errors import AdaptError, ModelError
from icd.networks.adapt import adapt
from icd.networks.base import Network
from icd.networks.build import network
from icd.networks.pretrained import load_published
from icd.networks.registry import NETWORKS
from icd.networks.resnet import SmallResNet

__all__ = [
    "NETWORKS",
    "AdaptError",
    "ModelError",
    "Network",
    "SmallResNet",
    "adapt",
    "load_published",
    "network",
]
