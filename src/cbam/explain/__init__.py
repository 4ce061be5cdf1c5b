"""Where a network looks: class activation maps and their pictures."""
