"""Drawn scenes of coloured shapes for quick starts and tests, with their captions and scores."""
