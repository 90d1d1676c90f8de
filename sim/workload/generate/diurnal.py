"""Arrivals that follow the sun: each site has its day, shifted by its time zone.

rate(t) = mean * (1 + amplitude * cos(2 pi (local hour - peak hour) / 24)), where the local hour is that of UTC plus the
time zone. The sum over the sites is drawn by thinning a Poisson process of the highest rate (Lewis and Shedler 1979):
exact, without steps in time.
"""

from math import cos, pi
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from ..section import Fraction, Name, Positive, Section
from .moments import Moments


class Zone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A site's day: its mean rate, and its clock against UTC."""

    site: Name
    rate_per_s: Positive = 1.0
    utc_offset_h: Annotated[float, Meta(ge=-14, le=14)] = 0.0


class Diurnal(Section, frozen=True, kw_only=True, tag="diurnal"):
    """A sinusoid per site. Time 0 is `start_utc_h`; a day of `day_s` seconds may be shorter than a real one."""

    zones: Annotated[tuple[Zone, ...], Meta(min_length=1)]
    amplitude: Fraction = 0.8
    peak_h: Annotated[float, Meta(ge=0, le=24)] = 15.0
    start_utc_h: Annotated[float, Meta(ge=0, le=24)] = 0.0
    day_s: Positive = 86_400.0

    def rate_per_s(self, zone: Zone, at_s: float) -> float:
        """The rate of one site at a time."""
        hour = self.start_utc_h + at_s / self.day_s * 24 + zone.utc_offset_h
        return zone.rate_per_s * (1 + self.amplitude * cos(2 * pi * (hour - self.peak_h) / 24))

    def moments(self, random: Random) -> Moments:
        """Moments in order with the site of each, without end."""
        highest_per_s = sum(zone.rate_per_s for zone in self.zones) * (1 + self.amplitude)
        at_s = 0.0
        while True:
            at_s += random.expovariate(highest_per_s)
            place = random.random() * highest_per_s
            for zone in self.zones:
                place -= self.rate_per_s(zone, at_s)
                if place < 0:
                    yield at_s, zone.site
                    break
