"""The server: many requests answered at once, in the form that OpenAI's clients speak."""
