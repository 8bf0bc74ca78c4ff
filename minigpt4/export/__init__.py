"""A trained model for other programs: a verified folder for transformers, or a language model with adapters merged."""
