"""What the pages of all commands share: the style sheet, figures as SVG, pictures inside the page, sortable tables."""

from cbam.page.environment import environment
from cbam.page.pictures import embedded, embedded_picture, png_uri, shell_lines

__all__ = ["embedded", "embedded_picture", "environment", "png_uri", "shell_lines"]
