"""Whether a converted model says what the original says, photo by photo."""
