"""The experiment grid, its statistics and its report."""
