"""A Prefect server for one command, where none is configured; it never outlives the command."""

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tasks.errors import ServerError

_ANSWER_SECONDS = 15

# Kept for as long as the process lives: forgetting one would close its pipe.
_guards: list["subprocess.Popen[bytes]"] = []


def ensure_server(meanwhile: Callable[[], object]) -> None:
    """Start a temporary Prefect server unless one is configured.

    Prefect would do so by itself, and stops it at a normal exit; but when the command is killed it
    leaves the server running for ever.

    Args:
        meanwhile: What to do while it starts, which takes some seconds of another processor.

    Raises:
        ServerError: The configured server does not answer, or the temporary one does not start.
    """
    from prefect.settings import PREFECT_API_URL

    if configured := PREFECT_API_URL.value():
        _check_answers(configured)
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # the very one that Prefect's client will find running
    with ThreadPoolExecutor(1) as waiting:
        started = waiting.submit(server.start)
        meanwhile()
        try:
            started.result()
        except RuntimeError as error:
            raise ServerError(f"Prefect's temporary server does not start: {error}") from error
    os.environ["PREFECT_API_URL"] = server.api_url  # worker processes are to use it too
    if server.server_process is None:
        raise ServerError("Prefect's temporary server has no process")
    # `read` ends when our end of the pipe closes, and that happens however we die.
    _guards.append(
        subprocess.Popen(  # noqa: S603 (a constant script)
            ["/bin/sh", "-c", 'read -r _; kill "$0" 2>/dev/null', str(server.server_process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    )


def _check_answers(api_url: str) -> None:
    try:
        with urllib.request.urlopen(  # noqa: S310 (the user's own setting)
            f"{api_url.rstrip('/')}/health", timeout=_ANSWER_SECONDS
        ):
            return
    except urllib.error.HTTPError:
        return  # it answers, if only to say that it wants a login
    except (OSError, ValueError) as error:
        raise ServerError(
            f"no Prefect server answers at {api_url} ({error}); start it, or unset PREFECT_API_URL "
            "to use a temporary one"
        ) from error
