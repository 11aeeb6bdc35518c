"""Checks of what a task finds around it: environment, directory, standard streams, and what it inherits."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cameleer.config import Stdio
from cameleer.testing.base import SuiteBase, check

_SECRET = "CAMELEER_SUITE_SECRET"
_MADE_BY_SHELLS = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})
_MADE_BY_ENGINES = frozenset({"PATH", "HOME", "HOSTNAME", "TERM"})


class SurroundingChecks(SuiteBase):
    """A task gets what its configuration says, and nothing of the host's process."""

    # environment and directory

    @check("shell")
    async def test_the_environment_is_the_one_that_was_asked_for(self) -> None:
        wanted = {"PLAIN": "1", "SPACES": " a  b ", "LINES": "one\ntwo", "WORDS": "ünïcödé = $HOME", "EMPTY": ""}
        config = self.shell("")
        env = {**config.env, **wanted}
        with _in_environment(_SECRET, "of the host"):
            text = await self.output_of(
                'printf "%s\\n" "$PLAIN" "$SPACES" "$LINES" "$WORDS" "${EMPTY-unset}"; echo ---; env', env=env
            )
        values, _, listing = text.partition("\n---\n")
        assert values.split("\n") == ["1", " a  b ", "one", "two", "ünïcödé = $HOME", ""]
        names = {line.partition("=")[0] for line in listing.splitlines() if "=" in line}
        assert _SECRET not in listing, "the task got the environment of the host's process"
        extra = names - env.keys() - _MADE_BY_SHELLS - self._made_by_engine()
        assert not extra, "the task got variables that nobody asked for"

    def _made_by_engine(self) -> frozenset[str]:
        return frozenset() if self.offers("host files") else _MADE_BY_ENGINES

    @check("shell")
    async def test_arguments_arrive_as_they_are(self) -> None:
        words = ["two words", "", "*", "$HOME", "'\"", "\\", "ünï", "-n"]
        text = await self.output_of('printf "%s\\n" "$@"', *words)
        assert text.split("\n")[:-1] == words

    @check("shell")
    async def test_the_working_directory_is_the_one_that_was_asked_for(self) -> None:
        assert await self.output_of("pwd", cwd="/usr") == "/usr\n"

    # standard streams

    @check("shell")
    async def test_stdout_and_stderr_go_where_they_were_sent(self) -> None:
        out, err = self.folder / "out", self.folder / "err"
        out.write_text("before\n")
        async with self.host() as host:
            task = await self.start(
                host, self.shell("echo to out; echo to err >&2"), stdout=Stdio.file(out), stderr=Stdio.file(err)
            )
            await self.soon(task.wait(), "the task did not end")
            assert out.read_text() == "before\nto out\n", "output is to be appended"
            assert err.read_text() == "to err\n"

    @check("shell")
    async def test_all_output_is_there_when_the_task_has_ended(self) -> None:
        lines = 20_000
        script = "i=0; while [ $i -lt $1 ]; do echo line $i; i=$((i+1)); done"
        text = await self.output_of(script, str(lines))
        assert text.count("\n") == lines
        assert text.endswith(f"line {lines - 1}\n")

    @check("shell")
    async def test_stdin_comes_from_a_file(self) -> None:
        source = self.folder / "in"
        source.write_bytes(b"one\ntwo\n")
        assert await self.output_of("cat", stdin=Stdio.file(source)) == "one\ntwo\n"

    @check("shell")
    async def test_stdin_ends_at_once_by_default(self) -> None:
        assert await self.output_of("cat; echo done") == "done\n"

    @check("shell", "host files")
    async def test_a_descriptor_is_the_tasks_alone_once_the_caller_has_closed_it(self) -> None:
        reader, writer = os.pipe()
        async with self.host() as host:
            try:
                task = await self.start(host, self.shell("echo through a pipe"), stdout=Stdio.fd(writer))
            finally:
                os.close(writer)
            await self.soon(task.wait(), "the task did not end")
            os.set_blocking(reader, False)
            received = bytearray()
            try:
                await self.until(
                    lambda: _drained(reader, received), "the host or driver keeps a copy of the task's stdout open"
                )
            finally:
                os.close(reader)
            assert received == b"through a pipe\n"

    # what is inherited

    @check("shell")
    async def test_signals_have_their_defaults_and_none_is_blocked(self) -> None:
        text = await self.output_of("readlink /proc/$$/exe; grep -E '^Sig(Blk|Ign):' /proc/self/status")
        shell, _, text = text.partition("\n")
        masks = dict(line.split(":") for line in text.split("\n")[:-1])
        ignored, blocked = int(masks["SigIgn"], 16), int(masks["SigBlk"], 16)
        if shell.endswith("busybox"):  # whose shell has its commands ignore SIGQUIT
            ignored &= ~(1 << (signal.SIGQUIT - 1))
        assert not ignored, f"the task starts with ignored signals: {_signals(ignored)} (Python ignores 13 and 25)"
        assert not blocked, f"the task starts with blocked signals: {_signals(blocked)}"

    @check("shell")
    async def test_no_descriptor_is_inherited_but_the_standard_streams(self) -> None:
        stray = os.open(self.folder, os.O_RDONLY)
        os.set_inheritable(stray, True)
        try:
            text = await self.output_of("exec ls -l /proc/self/fd")
        finally:
            os.close(stray)
        targets = [line.split()[-3:] for line in text.splitlines() if " -> " in line]
        extra = [to for fd, _, to in targets if int(fd) > 2 and not to.startswith("/proc/")]  # ls reads that folder
        assert not extra, "the task got descriptors that are not its own"

    @check("shell", "host files")
    async def test_umask_nice_and_limits_are_the_callers(self) -> None:
        before = os.umask(0o027)
        try:
            text = await self.output_of("umask; ulimit -S -n; ulimit -H -n; ulimit -S -c; cat /proc/self/stat")
        finally:
            os.umask(before)
        umask, soft, hard, core, stat = text.splitlines()
        assert int(umask, 8) == 0o027
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == tuple(map(_limit, limits))
        assert core == _limit(resource.getrlimit(resource.RLIMIT_CORE)[0], unit=512)
        assert int(stat.rpartition(")")[2].split()[16]) == os.getpriority(os.PRIO_PROCESS, 0)

    @check("shell")
    async def test_a_task_has_a_session_of_its_own(self) -> None:
        text = await self.output_of("cat /proc/self/stat")
        session = int(text.rpartition(")")[2].split()[3])
        assert session != os.getsid(0), "a signal from the terminal would reach the task"

    @check("shell")
    async def test_a_task_is_not_protected_from_the_oom_killer(self) -> None:
        assert int(await self.output_of("cat /proc/self/oom_score_adj")) >= 0


@contextmanager
def _in_environment(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _drained(reader: int, received: bytearray) -> bool:
    """Read what is there; whether the end has come."""
    try:
        while chunk := os.read(reader, 4096):
            received += chunk
    except BlockingIOError:
        return False
    return True


def _signals(mask: int) -> list[int]:
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


def _limit(value: int, unit: int = 1) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value // unit)
