"""What the attention module costs beside other implementations and beside a copy of the map: `cbam bench`."""
