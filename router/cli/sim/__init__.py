"""`homing sim` and `homing calibrate`: the simulator on the command line."""
