"""Save networks with attention in folders, with everything needed to build them again, and load them."""

from cbam.pretrained.config import Config, read_config
from cbam.pretrained.hub import push_to_hub
from cbam.pretrained.opening import OpenedNetwork, from_pretrained, open_network
from cbam.pretrained.saving import save_pretrained

__all__ = [
    "Config",
    "OpenedNetwork",
    "from_pretrained",
    "open_network",
    "push_to_hub",
    "read_config",
    "save_pretrained",
]
