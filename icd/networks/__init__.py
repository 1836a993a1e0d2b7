"""The zoo: the book's networks and the papers' teachers and students, built by name.

Each is a plain module whose `forward(images)` gives logits and that `icd.scores.score` can read.
"""

from icd.errors import AdaptError, ModelError
from icd.networks.adapt import adapt
from icd.networks.base import Network
from icd.networks.build import NETWORKS, network, parameters
from icd.networks.pretrained import load_published
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
    "parameters",
]
