"""`python -m homing.workers.echo`: see `main.py`."""

from .main import main

main()
