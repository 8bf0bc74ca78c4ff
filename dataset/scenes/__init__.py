"""Captioned scenes of coloured shapes: what is in them, how they are drawn and how they are described."""
