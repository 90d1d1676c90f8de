"""Workers that answer with their prompt, in the time that a stopwatch says: engines to test what stands before them.

The scheduler in them is the real one (`workers/engine`); the model is a stopwatch, and no torch is needed. `openai.py`
shows it as a vLLM server, with its routes, metrics and KV events.
"""
