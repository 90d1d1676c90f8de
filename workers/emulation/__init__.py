"""An emulated wide-area network between sites on one machine, for the demo and the tests.

Production code knows only that an address may differ by site and imports nothing from here.
"""

from .link import EmulatedLink
from .wan import Wan

__all__ = ["EmulatedLink", "Wan"]
