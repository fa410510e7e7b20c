"""Supervised child processes: each is restarted whenever it ends, and all end with their supervisor.

The worst that a request can do is to end a child (out of memory, a crash, a full disk). A child is restarted without
limit, after pauses that grow to ten seconds, so that no caller can make the supervisor give up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
PAUSE_SECONDS = (0.1, 10.0)
"""Before a child that ended is started again: the first pause, and the longest, since each is twice the one before."""
HEALTHY_SECONDS = 10.0
"""A child that ran for so long has recovered: its next exit counts as the first, and it restarts at once."""
STARTED_SECONDS = 1.0
"""The same for a store or a worker, which no request can end."""
OOM_SCORE = 300
"""Added to a child's oom_score_adj: if memory runs out, the kernel kills a child and not the supervisor."""
LOUD_ENDS = 5
"""From so many ends in a row on, each is logged as an error."""


class Child:
    """One supervised process. `on_end` is called with every process id that has ended."""

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
        oom_score: int = OOM_SCORE,
        pause_seconds: tuple[float, float] = PAUSE_SECONDS,
    ) -> None:
        self.name = name
        self.process: asyncio.subprocess.Process | None = None
        self.ends = 0
        """In a row, without having been healthy in between."""
        self.refusals = 0
        """How many of these, in a row, were exits with an error and not by a signal."""
        self.all_ends = 0
        self._command = tuple(command)
        self._death_signal = death_signal
        self._given = dict(environment or {})
        given = {**os.environ, **self._given}
        self._environment = {name: value for name, value in given.items() if value is not None}
        self._pass_fds = tuple(pass_fds)
        self._log_file = log_file
        self._on_end = on_end
        self._healthy_seconds = healthy_seconds
        self._oom_score = oom_score
        self._pause_seconds = pause_seconds
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
            oom_score=self._oom_score,
            pause_seconds=self._pause_seconds,
        )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self, *, announced: bool = False) -> None:
        """`announced`: it says when it is ready, on the descriptor of its `--ready-fd`. (One that ended and is started
        again does not.) Raises OSError where it cannot be started."""
        if announced:
            await self._spawn_announced()
        else:
            await self._spawn()
        self.keep()

    def keep(self) -> None:
        """The same without waiting: a failed start is retried until it succeeds."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def until_ready(self, seconds: float) -> bool:
        """Whether it announced readiness within `seconds`; returns at once where it has ended."""
        assert self._ready is not None
        await asyncio.wait((self._ready,), timeout=seconds)
        return self._ready.done() and self._ready.result()

    async def stop(self, seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal it to end, then SIGKILL after `seconds`. Returns when it has ended."""
        self._stopping = True
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)  # a stopped process would not handle it
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

        def announced() -> None:
            loop.remove_reader(reader)
            said = os.read(reader, 1)
            os.close(reader)
            if not ready.done():
                ready.set_result(bool(said))  # the pipe ends with the process

        loop.add_reader(reader, announced)
        try:
            await self._spawn((f"--ready-fd={writer}",), (writer,))
        finally:
            os.close(writer)

    async def _spawn(self, flags: Sequence[str] = (), descriptors: Sequence[int] = ()) -> None:
        supervisor, death_signal, oom_score = os.getpid(), self._death_signal, self._oom_score
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def die_with_supervisor() -> None:
            """In the child: a killed supervisor leaves nothing running (Linux)."""
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
                if os.getppid() != supervisor:  # it died in between
                    os._exit(1)
                _offer_to_oom_killer(oom_score)

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
        """Restart it whenever it ends, until it is stopped."""
        while True:
            if self.process is not None and not await self._ended(self.process):
                return
            while not await self._spawned():  # noqa: ASYNC110 - nothing signals that there is memory again
                await asyncio.sleep(self._backoff())

    async def _ended(self, process: asyncio.subprocess.Process) -> bool:
        """Wait for its end, and for the pause after it. False where it was stopped."""
        started = time.monotonic()
        status = await process.wait()
        with contextlib.suppress(OSError):  # a full disk must not keep the child from restarting
            self._on_end(process.pid)
        if not self._stopping:
            self._count(status, healthy=time.monotonic() - started > self._healthy_seconds)
            await asyncio.sleep(self._backoff(status=status))
        return not self._stopping

    async def _spawned(self) -> bool:
        """Whether it was started; memory, processes, files or disk may be exhausted."""
        try:
            await self._spawn()
        except (OSError, subprocess.SubprocessError) as error:
            self._count(1, healthy=False)
            log.error("child not started", child=self.name, why=str(error))
            return False
        return True

    def _count(self, status: int, *, healthy: bool) -> None:
        self.all_ends += 1
        self.ends = 1 if healthy else self.ends + 1
        self.refusals = 0 if status <= 0 else 1 if healthy else self.refusals + 1

    def _backoff(self, **said: int) -> float:
        """How long to wait before the next start."""
        first, longest = self._pause_seconds
        seconds = min(longest, first * 2.0 ** min(self.ends - 1, 16))
        say = log.error if self.ends >= LOUD_ENDS else log.warning
        say("child ended; starting it again", child=self.name, **said, in_seconds=seconds, ends=self.ends)
        return seconds


def _offer_to_oom_killer(score: int) -> None:
    """In the child, before it is another program."""
    with contextlib.suppress(OSError, ValueError):
        now = int(_OOM_SCORE_ADJ.read_text())
        _OOM_SCORE_ADJ.write_text(str(min(1000, now + score)))
