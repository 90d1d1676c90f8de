"""The OpenAI-compatible door: clients on one side, engines on the other."""
