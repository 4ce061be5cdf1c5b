"""One recorded forward: which module made which tensor, and how the tensors depend on each other."""
