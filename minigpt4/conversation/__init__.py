"""Prompts as text and as token ids: template, tokenizer, encoding, dialogue."""
