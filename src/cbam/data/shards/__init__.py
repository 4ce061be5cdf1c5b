"""Images in tar files as WebDataset writes them, read at random: one ranged read a sample, here or over the network."""
