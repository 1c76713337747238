"""Scores of a split and what they are worth, from checkpoints and from score files."""
