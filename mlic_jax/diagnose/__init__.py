"""What ails a run and its set: why a model fails, and which labels it has reason to doubt."""
