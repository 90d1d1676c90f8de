"""A load test: users and traces that ask through the OpenAI door or through gRPC, on Locust.

`locustfile.py` is what Locust runs, `run.py` brings everything up on this machine and runs it.
"""
