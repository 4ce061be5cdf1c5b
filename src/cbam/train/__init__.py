"""Training: one loop for classification, exact resume, atomic files."""
