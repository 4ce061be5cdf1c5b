"""What the attention module costs beside its rivals and beside a plain copy of the map; `cbam bench` runs it."""
