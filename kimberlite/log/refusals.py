"""What the operating system refuses, said as one of our errors."""

from __future__ import annotations

import errno
from typing import Final

from kimberlite.errors import KimberliteError, Misconfigured, NoSpace, Unavailable

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What the operating system says of a directory that cannot be used as it is.
UNFIT = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EREMOTE, errno.ENOSYS, errno.EPERM, errno.EACCES)
#: What it says of one besides that is opened for writing, and of one that is looked for. Later these two are no
#: fault of the directory: a file was taken away by somebody else, or the disk failed and the kernel writes no more.
UNFIT_TO_WRITE = (*UNFIT, errno.EROFS)
UNFIT_TO_BEGIN = (*UNFIT_TO_WRITE, errno.ENOENT)


def refusal(what: str, error: OSError) -> NoSpace | Unavailable:
    """Why nothing was appended, or dropped."""
    kind = NoSpace if error.errno in FULL else Unavailable
    where = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return kind(f"{what}: {where}{error.strerror}")


def translate(error: OSError, where: str, unfit: tuple[int, ...] = UNFIT) -> KimberliteError:
    """An error of the operating system as one of ours; `unfit` are those that say that the directory cannot be used."""
    if error.errno in FULL:
        return NoSpace(f"{where}: {error.strerror}")
    if error.errno in unfit:
        return Misconfigured(f"{where}: {error}")
    return Unavailable(f"{where}: {error}")
