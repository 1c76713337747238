"""PyTorch checkpoints in, ours out. The only place that may import torch, and only when needed."""
