"""How engines are made to move KV: one file per way of doing it, each with exactly the JSON that the engine reads."""
