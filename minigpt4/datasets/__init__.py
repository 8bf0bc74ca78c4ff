"""Annotations -> records -> samples -> batches. What a dataset is stands in a YAML card, not in a class."""
