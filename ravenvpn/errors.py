"""Exceptions of this package, one class for each party that has to react.

A module that imports a foreign library catches the library's exceptions and raises one of these instead.
"""


class RavenError(Exception):
    """Base class. `str()` is one line that an operator can act on."""


class ConfigError(RavenError):
    """A file, a flag or a field is wrong; the operator has to correct it."""

    def __init__(self, message: str, *, where: str = "", field: str = "", remedy: str = "") -> None:
        """`where` names the file, line or flag, `field` the key, `remedy` what to do about it."""
        super().__init__(message)
        self.message, self.where, self.field, self.remedy = message, where, field, remedy

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.field) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.remedy})" if self.remedy else text


class HostError(RavenError):
    """This machine lacks a capability, module, device or program, or its kernel refused something."""

    def __init__(self, message: str, *, subject: str = "", errno_name: str = "", remedy: str = "") -> None:
        """`subject` is the thing that could not be made, `errno_name` the kernel's answer ("EPERM"), if it was
        one."""
        super().__init__(message)
        self.message, self.subject, self.errno_name, self.remedy = message, subject, errno_name, remedy

    def __str__(self) -> str:
        text = f"{self.subject}: {self.message}" if self.subject else self.message
        text = f"{text} [{self.errno_name}]" if self.errno_name else text
        return f"{text} ({self.remedy})" if self.remedy else text


class ClusterError(RavenError):
    """A request to the API server failed; the caller repeats it with back-off."""


class MalformedMessage(RavenError):
    """A message from the network is malformed: it is counted and dropped, and never logged."""


class AgentUnreachableError(RavenError):
    """No agent answers on the control socket."""
