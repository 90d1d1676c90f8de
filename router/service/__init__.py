"""The live shell around the core: the only place of the router with sockets, clocks and awaits."""
