"""The simulated network: links between sites, and how flows share them on virtual time.

Reading order: `spec` (what is true of a link), `resource` (what is shared, and its books), `sharing` (who gets how
much, and when that ends), `flow` and `network` (what callers hold), `audit` (what is true at every moment).
"""

from .flow import Flow
from .network import Network
from .resource import Usage
from .spec import LinkSpec

__all__ = ["Flow", "LinkSpec", "Network", "Usage"]
