"""Annotations -> records -> samples -> batches. A dataset is described by a YAML card, not by a class."""
