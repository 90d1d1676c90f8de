"""Homing as the endpoint picker of an Envoy (Gateway API Inference Extension, ext_proc)."""
