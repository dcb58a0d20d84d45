"""A Prefect server for one command, where none is configured; it never outlives the command."""

import os
import subprocess

# Kept for as long as the process lives: forgetting one would close its pipe.
_guards: list["subprocess.Popen[bytes]"] = []


def ensure_server() -> None:
    """Start a temporary Prefect server unless one is configured.

    Prefect would do so by itself, and stops it at a normal exit; but when the command is killed it
    leaves the server running for ever.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    server = SubprocessASGIServer()  # the very one that Prefect's client will find running
    server.start()
    os.environ["PREFECT_API_URL"] = server.api_url  # worker processes are to use it too
    if server.server_process is None:
        raise RuntimeError("Prefect's temporary server has no process")
    # `read` ends when our end of the pipe closes, and that happens however we die.
    _guards.append(
        subprocess.Popen(  # noqa: S603 (a constant script)
            ["/bin/sh", "-c", 'read -r _; kill "$0" 2>/dev/null', str(server.server_process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    )
