"""Putting labels right: which ones a person is asked for, the page that asks, and a probe between."""
