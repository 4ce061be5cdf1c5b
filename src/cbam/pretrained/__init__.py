"""Save networks with attention in folders, with everything needed to build them again, and load them."""

from cbam.pretrained.config import Config, read_config
from cbam.pretrained.hub import push_to_hub
from cbam.pretrained.loading import from_pretrained
from cbam.pretrained.saving import save_pretrained

__all__ = ["Config", "from_pretrained", "push_to_hub", "read_config", "save_pretrained"]
