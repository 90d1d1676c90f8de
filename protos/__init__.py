"""The wire: `homing.v1` messages and services, and the code generated from them (`make protos`)."""
