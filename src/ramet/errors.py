"""ramet's error tree. Each class carries the `code` that JSON shows and the `exit_code` of the shell.

A message names the thing and the reason; the hint is the next step. `docs/reference/errors.md` is generated
from this module.
"""

from typing import ClassVar, Self, TypeVar

from ramet.surface import exported

E = TypeVar("E", bound="RametError")


@exported
class RametError(Exception):
    """A request to ramet failed. Base of every error that ramet raises on purpose."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Carry errors between processes by their attributes, for any constructor."""
        return _remade, (type(self), self.args, self._carried())

    def _carried(self) -> dict[str, object]:
        """Return the attributes that may leave this process."""
        return dict(vars(self))

    def __copy__(self) -> Self:
        return _remade(type(self), self.args, dict(vars(self)))

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()


def _remade(kind: type[E], args: tuple[object, ...], attributes: dict[str, object]) -> E:
    """Make an error again without its constructor."""
    made = kind.__new__(kind)
    made.args = args
    vars(made).update(attributes)
    return made


@exported
class UsageError(RametError):
    """The request itself makes no sense: an illegal name, a size that can't be, a count of zero."""

    code = "usage"
    exit_code = 2


@exported
class NotFoundError(RametError):
    """No instance, snapshot, image or kernel answers to that reference."""

    code = "not_found"
    exit_code = 3


@exported
class WrongStateError(RametError):
    """The thing exists, but not in a state in which this can be done. Nothing was changed."""

    code = "wrong_state"
    exit_code = 4


@exported
class UnavailableError(RametError):
    """This machine can't: a program, a device, a permission or a kernel ability is missing."""

    code = "unavailable"
    exit_code = 5


@exported
class UnseenError(UnavailableError):
    """A process can't be seen from here, and may live, so nothing was done about it.

    It belongs to another PID namespace (a container) or to another machine.
    """

    code = "unseen"


@exported
class LimitReachedError(UnavailableError):
    """A limit on processes, threads or open files was met; the message names it. What fitted lives."""

    code = "limit_reached"


@exported
class NotSharedError(UnavailableError):
    """`require_shared` was asked for, and memory or a disk could only have been copied."""

    code = "not_shared"


@exported
class PartlyFailedError(RametError):
    """Of several things some were done and some failed; each result says which."""

    code = "partly_failed"
    exit_code = 6


@exported
class NameTakenError(RametError):
    """Another instance has that name, or another snapshot of the same source. Nothing was changed."""

    code = "name_taken"
    exit_code = 7


@exported
class VmmError(RametError):
    """The VMM refused, failed or died. Its last words are in the message."""

    code = "vmm_failed"


@exported
class VmmTimeoutError(VmmError):
    """The VMM didn't answer within its limit. It may be hung: its owner kills it."""

    code = "vmm_timeout"


@exported
class GuestError(RametError):
    """The guest's agent refused a request or broke the protocol."""

    code = "guest_failed"


@exported
class ProtocolError(GuestError):
    """Bytes from a guest that the protocol doesn't allow. The connection is closed; the guest is unharmed."""

    code = "protocol"


@exported
class GuestTimeoutError(GuestError):
    """The guest didn't answer within its limit."""

    code = "guest_timeout"


@exported
class GuestLostError(GuestError):
    """The connection to the guest's agent ended during a request, which the guest may have done or not."""

    code = "guest_lost"


@exported
class PortsBusyError(GuestError):
    """Every agent port of the instance stayed claimed by other clients for the whole wait."""

    code = "ports_busy"


@exported
class ExecError(RametError):
    """A command in the guest couldn't be started, or `check=True` found that it failed."""

    code = "exec_failed"


@exported
class ExecNotFoundError(ExecError):
    """The guest has no such program (as a shell's 127)."""

    code = "exec_not_found"
    exit_code = 127


@exported
class ExecNotExecutableError(ExecError):
    """The guest's program exists but can't be executed (as a shell's 126)."""

    code = "exec_not_executable"
    exit_code = 126


@exported
class ExecTimeoutError(ExecError):
    """A command in the guest ran out of its time and was killed with its process group."""

    code = "exec_timeout"
    exit_code = 124


@exported
class ExecUnansweredError(ExecTimeoutError, GuestTimeoutError):
    """A command's time is over, and its guest doesn't say what became of it: it may still run."""

    code = "guest_timeout"


@exported
class FilesystemError(RametError):
    """The filesystem refused: no space, no permission, no such file, an error of the medium."""

    code: ClassVar[str] = "filesystem"

    def __init__(self, message: str, *, hint: str | None = None, number: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.number = number
        """The errno, where there was one."""


@exported
class CannotReflinkError(UnavailableError):
    """These two files can't share blocks. `message` is the reason, in words that fit in a receipt."""

    code: ClassVar[str] = "cannot_reflink"


@exported
class LockBusyError(RametError):
    """Another holder kept a lock for as long as the caller was ready to wait. Nothing is lost."""

    code: ClassVar[str] = "busy"


@exported
class DamagedError(RametError):
    """A published part isn't what its manifest says: size, blocks, mode or times differ."""

    code = "damaged"


@exported
class RegistryError(RametError):
    """A registry can't be reached, refused, or answered what its protocol doesn't allow."""

    code = "registry"


@exported
class RegistryLoginError(RegistryError):
    """A registry wants credentials that it wasn't given, or refuses those that it was given."""

    code = "registry_login"


@exported
class StoreError(RametError):
    """The home's database can't be read or written."""

    code = "store"


@exported
class UnreadableError(StoreError):
    """A record of the home's database can't be read. The record is left alone; others aren't affected."""

    code = "unreadable"
