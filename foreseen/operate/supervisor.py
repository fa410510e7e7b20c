"""Commands → child processes that are restarted when they end and that never outlive their supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 10.0
HEALTHY_SECONDS = 10.0
"""A child that ran for so long has recovered: its next end is its first, and it is back at once."""
STARTED_SECONDS = 1.0
"""The same for one that nothing which it is asked can end, a store or a worker: it did start, and is needed at once."""
MAX_ENDS = 10
"""After so many ends in a row it is given up, loudly."""


class Child:
    """One supervised process. `on_end` hears of every process id that has ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        death_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str | None] | None = None,
        pass_fds: Sequence[int] = (),
        log_file: Path | None = None,
        on_end: Callable[[int], None] = lambda _: None,
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self.name = name
        self.process: asyncio.subprocess.Process | None = None
        self.given_up = asyncio.Event()
        self.ends = 0
        self._command = tuple(command)
        self._death_signal = death_signal
        self._given = dict(environment or {})
        given = {**os.environ, **self._given}
        self._environment = {name: value for name, value in given.items() if value is not None}
        self._pass_fds = tuple(pass_fds)
        self._log_file = log_file
        self._on_end = on_end
        self._healthy_seconds = healthy_seconds
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[bool] | None = None

    def like(self) -> Child:
        """Another one, that is not started yet."""
        return Child(
            self.name,
            self._command,
            death_signal=self._death_signal,
            environment=self._given,
            pass_fds=self._pass_fds,
            log_file=self._log_file,
            on_end=self._on_end,
            healthy_seconds=self._healthy_seconds,
        )

    async def start(self, *, announced: bool = False) -> None:
        """`announced`: it says when it is ready, on the descriptor of its `--ready-fd`. (One that ended and is started
        again does not.)"""
        if announced:
            await self._spawn_announced()
        else:
            await self._spawn()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def until_ready(self, seconds: float) -> bool:
        """Whether it has said so within so long; at once where it has ended."""
        assert self._ready is not None
        await asyncio.wait((self._ready,), timeout=seconds)
        return self._ready.done() and self._ready.result()

    async def stop(self, seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Tell it to end, then SIGKILL after so long. Returns when nothing of it runs."""
        self._stopping = True
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)  # a stopped process would not hear it
            try:
                await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                log.warning("child killed: it did not stop in time", child=self.name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def _spawn_announced(self) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        ready = self._ready = loop.create_future()

        def told() -> None:
            loop.remove_reader(reader)
            said = os.read(reader, 1)
            os.close(reader)
            if not ready.done():
                ready.set_result(bool(said))  # the pipe ends with the process

        loop.add_reader(reader, told)
        try:
            await self._spawn((f"--ready-fd={writer}",), (writer,))
        finally:
            os.close(writer)

    async def _spawn(self, flags: Sequence[str] = (), descriptors: Sequence[int] = ()) -> None:
        supervisor, death_signal = os.getpid(), self._death_signal
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def die_with_supervisor() -> None:
            """In the child: a killed supervisor leaves nothing running (Linux)."""
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
                if os.getppid() != supervisor:  # it died in between
                    os._exit(1)

        with contextlib.ExitStack() as files:
            output: IO[bytes] | int | None = None
            if self._log_file is not None:
                output = files.enter_context(self._log_file.open("ab"))
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output if output is not None else sys.stderr.fileno(),
                stderr=output,
                env=self._environment,
                pass_fds=(*self._pass_fds, *descriptors),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the rest in order
                preexec_fn=die_with_supervisor,
            )

    async def _keep(self) -> None:
        while self.process is not None:
            started = time.monotonic()
            status = await self.process.wait()
            self._on_end(self.process.pid)
            if self._stopping:
                return
            self.ends = 1 if time.monotonic() - started > self._healthy_seconds else self.ends + 1
            if self.ends >= MAX_ENDS:
                log.error("child given up", child=self.name, status=status, ends=self.ends)
                self.given_up.set()
                return
            backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (self.ends - 1))
            log.warning("child ended; starting it again", child=self.name, status=status, in_seconds=backoff)
            await asyncio.sleep(backoff)
            await self._spawn()
