"""Experiments: train and save a network, compare methods over seeds, and read the published results."""
