"""Pictures for people: pages, charts and texts. Nothing here computes a score."""
