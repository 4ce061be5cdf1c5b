"""Networks with attention in folders: saved with what it takes to build them again."""

from cbam.pretrained.config import Config, read_config
from cbam.pretrained.loading import from_pretrained
from cbam.pretrained.saving import save_pretrained

__all__ = ["Config", "from_pretrained", "read_config", "save_pretrained"]
