"""Blocks whose epilogue, relu(attention(norm(u)) + shortcut), runs as one call of the operator."""
