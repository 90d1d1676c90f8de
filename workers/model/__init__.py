"""The worker's torch model: a Llama decoder over a paged KV tensor, its weights, tokenizer and sampling.

Nothing here imports torch at import time, so that the router may use `homing.workers.model.tokenizer`.
"""
