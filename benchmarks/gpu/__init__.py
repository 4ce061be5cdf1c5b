"""What can be said about the GPU kernels without a GPU."""
