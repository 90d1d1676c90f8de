"""The truth of a simulation: how long passes really take, and how many bytes of KV there really are."""

from .catalogue import SHAPES, shape_of
from .files import load_profile, parse_profile, profile_names
from .fit import FitReport, fit
from .profile import Profile, linear_profile
from .shape import ModelShape

__all__ = [
    "SHAPES",
    "FitReport",
    "ModelShape",
    "Profile",
    "fit",
    "linear_profile",
    "load_profile",
    "parse_profile",
    "profile_names",
    "shape_of",
]
