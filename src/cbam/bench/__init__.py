"""`cbam bench`: the cost of the attention module, compared with other implementations and a copy of the map."""
