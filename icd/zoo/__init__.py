"""The zoo: the book's networks and the papers' teachers and students, built by name.

Each is a plain module whose `forward(images)` gives logits and that `icd.scores.score` can read.
"""

from icd.zoo.base import Network
from icd.zoo.networks import NETWORKS, network, parameters
from icd.zoo.published import ModelError, load_published
from icd.zoo.resnet import SmallResNet

__all__ = ["NETWORKS", "ModelError", "Network", "SmallResNet", "load_published", "network", "parameters"]
