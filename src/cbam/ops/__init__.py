"""The attention arithmetic on tensors; `reference` is plain torch and defines what every backend must return."""
