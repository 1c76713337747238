"""Batches and a model to scores: views, stored passes, score files."""
