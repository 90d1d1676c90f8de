"""All processes of arrival that a scenario file can name."""

from .bursty import Gamma, Mmpp
from .diurnal import Diurnal
from .poisson import Poisson

Process = Poisson | Gamma | Mmpp | Diurnal
