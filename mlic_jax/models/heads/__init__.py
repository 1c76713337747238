"""Heads: feature maps to the logits of labels."""
