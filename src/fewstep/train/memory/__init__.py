"""Ways to train in less memory, one file each; none is on by itself."""
