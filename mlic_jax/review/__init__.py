"""Putting labels right: what a person is asked, and the page that asks, with a probe in between."""
