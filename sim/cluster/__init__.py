"""The simulated world: workers that take true times, moves over the network, faults, and the router's core among them.

The router's core and the workers' engine are the live system's own; only the GPU is a stopwatch here and the network a
model. Reading order: `worker` (one engine), `handover` and `incoming` (blocks that travel), `attempt` (one dispatch),
`router` (the core on virtual time), `faults`, `world` (all of it).
"""
