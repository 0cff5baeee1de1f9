"""Order: which steps run in which order, and nothing else."""
