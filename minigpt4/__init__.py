"""Align a frozen vision encoder with a frozen language model by training one small projection."""

__version__ = "0.1.0"
