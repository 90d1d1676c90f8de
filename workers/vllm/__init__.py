"""Homing's KV connector for vLLM: any vLLM gives KV blocks to others and takes them, over `workers.transfer`.

vLLM loads `connector.HomingConnector` by name, once in its scheduler and once in each process that computes. Reading
order: `settings` and `params` (what operators and requests say), `plan` (what a request loads, and from whom), `store`
(which blocks lie in host memory), `geometry` and `memory` (where their bytes lie), `asking` and `serving` (giving
blocks), `pulling` and `host` (taking them), `scheduler_side` and `worker_side` (vLLM's two halves), `connector`.

Rule 1: whatever fails on the way of a block, the engine computes it. No hook of vLLM raises once the engine runs.
Rule 2: torch and vLLM are imported inside `geometry`, `memory`, `identity`, `events` and `connector` alone.
"""
