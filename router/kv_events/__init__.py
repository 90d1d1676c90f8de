"""What engines tell of their caches, made into the router's own events, and how far each can be believed."""
