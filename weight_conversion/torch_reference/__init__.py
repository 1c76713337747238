"""Plain PyTorch modules written from the papers: independent witnesses, for verification only."""
