"""`homing demo`: a small global fleet on one machine, in its own process tree."""
