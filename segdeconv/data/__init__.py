"""Data sets of images and label maps, and what is done to them on the way to the network."""
