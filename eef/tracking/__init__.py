"""Run folders, cached stages and their keys, and Weights & Biases."""
