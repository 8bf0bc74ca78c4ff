"""Runs: training, evaluation, and filling feature caches."""
