"""Scores of predictions that exist already, and what is drawn and written from them."""
