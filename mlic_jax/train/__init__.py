"""Training: the loop, to be read from top to bottom, and what it is made of."""
