"""The pure core: told what happened and what time it is, it answers with what to do.

Nothing here reads a clock, draws randomness of its own, awaits or opens a socket; a lint contract says so. Reading
order: `types` (the nouns), `events` and `commands` (the verbs), `blocks` and `prefix_index` (who holds what), `rates`,
`topology`, `ledger`, `fleet`, `world` (what is believed), `price` and `planner` (what it would cost), and `scheduler`
(what is done).
"""
