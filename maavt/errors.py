"""What a user is told: one line that names the thing, what was expected and what to do next."""

import os
import re
import signal
import sys
from collections.abc import Callable

USER = re.compile(r"(?<=://)[^\s/?#]*@")  # user, password or token before the host of a URL
SECRET = re.compile(r"([?&;#][\w.%-]*(?:token|sig|secret|passw|pwd|key|credential|auth|policy)[\w.%-]*=)"
                    r"[^\s&;#'\"<>)\]}]+", re.IGNORECASE)  # values in a URL's query, such as those that sign it


class UserError(Exception):
    """Something the user can mend; its text is the whole message. Leads to exit code 1."""

    def __init__(self, message: object = ""):
        super().__init__(redacted(str(message)))


class UsageError(UserError):
    """The command was called wrongly. Leads to exit code 2."""


def redacted(text: str) -> str:
    """The text without the secrets of the URLs in it: user, password and token before the host, and query values such
    as token, key or signature. Every URL that is shown goes through this."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))


def run(main: Callable[[], object]) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Errors of the system (a full disk, no permission) and of the user become one line on stderr. SIGTERM ends
    the command as Ctrl-C does, so that locks are released and children ended.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
        return int(code or 0)
    except UsageError as error:
        message, code = str(error), 2
    except UserError as error:
        message, code = str(error), 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message, code = describe(error), 1
    except KeyboardInterrupt:
        message, code = "interrupted; what was finished is kept, run the same command again to go on", 130
    sys.stdout.flush()
    message = redacted(message)
    print(f"error: {message}" if code != 130 else message, file=sys.stderr, flush=True)
    return code


def describe(error: OSError) -> str:
    """One line for an error of the operating system, with what to do next where that is known."""
    where = f"{error.filename}: " if error.filename else ""
    what = os.strerror(error.errno) if error.errno else str(error)
    advice = {
        "No space left on device": "free some space and run the same command again to go on",
        "Disk quota exceeded": "free some space and run the same command again to go on",
        "Permission denied": "make it writable for you and run the same command again",
        "Read-only file system": "make it writable for you and run the same command again",
    }.get(what, "mend this and run the same command again")
    return f"{where}{what}; {advice}"
