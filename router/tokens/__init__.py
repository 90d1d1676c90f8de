"""Prompts to token ids, exactly as the engine would make them: the keys of the prefix index hang on every id."""
