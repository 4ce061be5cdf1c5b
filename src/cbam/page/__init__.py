"""What the pages of all commands share: the style sheet, figures as SVG, pictures inside the page, sortable tables."""

from cbam.page.environment import environment
from cbam.page.pictures import embedded, png_uri, shell_lines

__all__ = ["embedded", "environment", "png_uri", "shell_lines"]
