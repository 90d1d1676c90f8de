"""The command line: builds routers and workers out of configuration, and talks to them."""
