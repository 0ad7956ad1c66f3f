"""Every error this package raises on purpose, shaped by who has to react.

A foreign library's exceptions end at the module that owns that library; what passes further is one of these.
"""


class RavenError(Exception):
    """Anything ravenvpn raises on purpose. `str()` is one line a person can act on."""


class ConfigError(RavenError):
    """The operator's: a file, a flag or a field is wrong.

    `where` names the file, line or flag; `field` the key; `remedy` what to do about it.
    """

    def __init__(self, message: str, *, where: str = "", field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message, self.where, self.field, self.remedy = message, where, field, remedy

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.field) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.remedy})" if self.remedy else text


class HostError(RavenError):
    """This machine's: a missing capability, module, device or program; the message names it and the remedy.

    `subject` is the thing that could not be brought about, `errno_name` the kernel's answer ("EPERM"), if it was one.
    """

    def __init__(self, message: str, *, subject: str = "", errno_name: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message, self.subject, self.errno_name, self.remedy = message, subject, errno_name, remedy

    def __str__(self) -> str:
        text = f"{self.subject}: {self.message}" if self.subject else self.message
        text = f"{text} [{self.errno_name}]" if self.errno_name else text
        return f"{text} ({self.remedy})" if self.remedy else text


class ClusterError(RavenError):
    """The API server's: retried with backoff by whoever talks to it."""


class MalformedMessage(RavenError):
    """The network's: a message that is not what it claims to be. Counted and dropped, never shown to a person."""


class AgentUnreachableError(RavenError):
    """The CLI's: nothing answers on the control socket."""
