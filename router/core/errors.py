"""The error tree. The first split is whose fault it was.

HomingError
├── ConfigError        the operator's: a file, a flag, a port
├── RequestError       the sender's: the request cannot be served as it is
└── EventError         a worker's: what it told cannot be true
"""


class HomingError(Exception):
    """Base of all errors that Homing raises for others to handle."""


class ConfigError(HomingError):
    """The configuration is wrong: names the path in the file, the rule and what was found."""


class RequestError(HomingError):
    """A request breaks a rule; `field` names which part of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class EventError(HomingError):
    """An event contradicts what the same worker told before; its sender must start over."""
