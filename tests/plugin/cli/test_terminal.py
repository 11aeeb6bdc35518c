from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.pty,
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]

Start = Callable[..., Any]
BASH = [shutil.which("bash") or "bash", "--norc", "--noprofile", "--noediting", "-i"]
CAMELEER = f"{sys.executable} -m cameleer.cli"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*m")
LOOP = "while :; do sleep 0.05; done"


def shell(session: Start, **options: Any) -> Any:
    """A shell with job control; its echo is off, so that what is read was written by programs."""
    started = session(BASH, **options)
    started.send("stty -echo; echo pre''pared\r")
    started.until("prepared\r\n")
    return started


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


# the terminal is the caller's


def test_ctrl_c_ends_the_command_and_cameleer_sums_up(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run sh -c 'echo ready; exec sleep 60'; echo status=$?\r")
    bash.until("ready")
    bash.send("\x03")
    bash.until("killed by SIGINT")
    bash.until("status=130")


def test_a_command_that_catches_ctrl_c_goes_on(session: Start) -> None:
    bash = shell(session)
    bash.send(f"""{CAMELEER} run sh -c 'trap "echo caught; exit 5" INT; echo ready; {LOOP}'; echo status=$?\r""")
    bash.until("ready")
    bash.send("\x03")
    bash.until("caught")
    bash.until("status=5")
    assert bash.output.count("caught\r\n") == 1


def test_ctrl_backslash_is_the_commands_own(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run sh -c 'trap \"echo caught; exit 6\" QUIT; echo ready; {LOOP}'; echo status=$?\r")
    bash.until("ready")
    bash.send("\x1c")
    bash.until("status=6")


def test_ctrl_z_stops_the_job_and_fg_continues_it(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run sh -c 'echo ready; read word; echo got $word'\r")
    bash.until("ready")
    bash.send("\x1a")
    bash.until("Stopped")
    bash.until("cameleer.cli run")  # of the same line: the next one is what fg prints
    bash.send("fg\r")
    bash.until("cameleer.cli run")
    bash.send("hello\r")
    bash.until("got hello")
    bash.until("exited with 0")


def test_a_pager_at_the_end_of_the_pipe_reads_the_keyboard(session: Start, tmp_path: Path) -> None:
    pager = script(
        tmp_path,
        "import sys, tty, termios, os\n"
        "fd = os.open('/dev/tty', os.O_RDWR)\nbefore = termios.tcgetattr(fd)\ntty.setcbreak(fd)\n"
        "text = sys.stdin.read()\n"
        "import time; time.sleep(0.3)\n"  # cameleer has ended now, and must not have touched the modes
        "print('lines', text.count(chr(10)), 'cbreak', not termios.tcgetattr(fd)[3] & termios.ICANON, flush=True)\n"
        "print('key', os.read(fd, 1), flush=True)\ntermios.tcsetattr(fd, termios.TCSADRAIN, before)\n",
    )
    bash = shell(session)
    bash.send(f"{CAMELEER} run --quiet seq 50 | {pager}\r")
    bash.until("lines 50 cbreak True")
    bash.send("q")
    bash.until("key b'q'")


def test_the_command_itself_may_be_the_pager(session: Start, tmp_path: Path) -> None:
    pager = script(
        tmp_path,
        "import sys, os\nfd = os.open('/dev/tty', os.O_RDWR)\ntext = sys.stdin.read()\n"
        "print('lines', text.count(chr(10)), flush=True)\nprint('key', os.read(fd, 2), flush=True)\n",
    )
    bash = shell(session)
    bash.send(f"seq 50 | {CAMELEER} run {pager}\r")
    bash.until("lines 50")
    bash.send("q\r")
    bash.until("key b'q\\n'")
    bash.until("exited with 0")


@pytest.mark.skipif(shutil.which("less") is None, reason="less is not installed")
def test_less_works(session: Start) -> None:
    bash = shell(session, env={"LESS": ""})
    bash.send(f"seq 500 | {CAMELEER} run less\r")
    bash.until("23\r\n")
    bash.send("G")
    bash.until("500\r\n")
    bash.send("q")
    bash.until("exited with 0")


def test_a_password_prompt_on_the_terminal_works_with_redirected_streams(session: Start, tmp_path: Path) -> None:
    ask = script(tmp_path, "import getpass\nprint('got', getpass.getpass('Password: '))\n")
    bash = shell(session)
    bash.send(f"{CAMELEER} run {ask} </dev/null >out 2>err; cat out\r")
    bash.until("Password: ")
    bash.send("secret\r")
    bash.until("got secret")
    screen = "\n".join(bash.screen.text())
    assert "Password:" in screen  # the live view, which came by itself, has not drawn over it


def test_the_terminal_is_restored_whatever_the_command_did_to_it(on_terminal: Start) -> None:
    started = on_terminal("run", "sh", "-c", "stty raw -echo -icrnl; kill -9 $$")
    before = started.modes()
    assert started.wait() == 137
    after = termios.tcgetattr(started.fd)
    assert after[:4] == before[:4]


def test_the_command_shares_the_process_group_and_session(on_terminal: Start) -> None:
    started = on_terminal(
        "run", sys.executable, "-c", "import os; print('ids', os.getpgrp(), os.getsid(0), os.isatty(0))"
    )
    assert started.wait() == 0
    assert f"ids {started.pid} {started.pid} True" in started.output


def test_a_timeout_ends_the_command_and_nothing_else_of_the_job(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run --timeout 0.3 sh -c 'trap \"\" INT; sleep 60' | (cat; echo neigh''bour alive)\r")
    bash.until("ran into its timeout")
    bash.until("neighbour alive")


@pytest.mark.parametrize("live", [[], ["--live"]])
def test_sigterm_is_passed_on_and_a_second_one_kills_on_a_terminal_too(on_terminal: Start, live: list[str]) -> None:
    started = on_terminal("run", *live, "sh", "-c", f"trap 'echo heard' TERM; echo ready; {LOOP}")
    started.until("ready\r\n")
    os.kill(started.pid, signal.SIGTERM)
    started.until("heard\r\n")
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 137


def test_a_job_in_the_background_does_not_touch_the_terminal(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run --live sleep 0.6 >out 2>err & sleep 1.5; wait; echo over; cat err\r")
    bash.until("over")
    bash.until("sleep 0.6 exited with 0")
    assert "\x1b[" not in bash.output.split("prepared")[1].split("over")[0]


# the live view


def plain(text: str) -> str:
    return ESCAPE.sub("", text)


def test_the_live_view_is_below_the_commands_own_terminal(on_terminal: Start) -> None:
    work = "stty size; test -t 0 && test -t 1 && test -t 2 && echo all; seq 100; read x; echo got $x"
    started = on_terminal("run", "--live", "sh", "-c", work, rows=20)
    before = started.modes()
    started.until(lambda: "memory" in started.screen.text()[18])
    started.until(lambda: started.screen.text()[14] == "100")
    assert "16 80" in started.output
    assert "all" in started.output
    view = started.screen.text()[16:]
    assert view[0].startswith("── sh -c")
    assert [line.split()[0] for line in view[1:]] == ["cpu", "memory", "tree"]
    started.send("word\r")
    started.until("got word")
    assert started.wait() == 0
    text = started.screen.text()
    assert not any(line.startswith("── sh -c") for line in text)
    assert "exited with 0" in "".join(text)
    assert started.modes()[:4] == before[:4]
    assert (started.screen.top, started.screen.bottom) == (0, 19)


def test_keys_and_ctrl_c_reach_a_command_below_which_the_view_is_drawn(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; " + LOOP)
    started.until("ready")
    started.send("\x03")
    started.until("caught")
    assert started.wait() == 9


def test_a_redirected_stdin_stays_the_commands_own_with_the_live_view(session: Start) -> None:
    bash = shell(session)
    bash.send(f"printf 'a\\nb\\n' >in; {CAMELEER} run --live sh -c 'wc -l; test -t 1 && echo t''ty; sleep 0.5' <in\r")
    bash.until("2\r\n")
    bash.until("tty")
    bash.until("exited with 0")
    bash.send(f"{CAMELEER} run --live sh -c 'echo rea''dy; exec sleep 60' </dev/null; echo status=$?\r")
    bash.until("ready")
    bash.send("\x03")
    bash.until("status=130")


@pytest.mark.skipif(shutil.which("less") is None, reason="less is not installed")
def test_a_program_on_the_whole_screen_stays_above_the_view(session: Start) -> None:
    bash = shell(session, env={"LESS": ""})
    bash.send(f"seq 500 >numbers; {CAMELEER} run --live less numbers\r")
    bash.until(lambda: bash.screen.text()[18] == "19" and "iB" in bash.screen.text()[22])
    bash.send("G")
    bash.until(lambda: bash.screen.text()[18] == "500")
    bash.until(lambda: "memory" in bash.screen.text()[22])
    bash.send("q")
    bash.until("exited with 0")


def test_output_of_a_short_command_is_complete_with_the_live_view(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "seq", "20000")
    assert started.wait() == 0
    numbers = [line for line in plain(started.output).replace("\r", "").split("\n") if line.isdigit()]
    assert numbers[-1] == "20000"
    assert len(numbers) >= 19990  # the first lines share theirs with the drawing of the view


def test_ctrl_z_stops_both_and_fg_brings_the_view_back(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run --live sh -c 'echo ready; read word; echo got $word'\r")
    bash.until("ready")
    bash.until(lambda: any(line.startswith("memory") for line in bash.screen.text()))
    bash.send("\x1a")
    bash.until("Stopped")
    bash.send("echo still-here; fg\r")
    seen = bash.until("still-here")
    bash.until("\x1b[1;20r", after=seen)
    bash.send("hello\r")
    bash.until("got hello")
    bash.until("exited with 0")


def test_a_view_that_is_continued_in_the_background_stops_until_the_foreground(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run --live sh -c 'echo rea''dy; read word; echo got $word'\r")
    bash.until("ready")
    bash.send("\x1a")
    bash.until("Stopped")
    seen = bash.until("$ ")
    bash.send("bg; sleep 0.3; jobs; echo look''ed\r")
    bash.until("looked", after=seen)
    assert "Stopped" in bash.output[seen:]
    bash.send("fg\r")
    bash.until("\x1b[1;20r", after=seen)
    bash.send("hello\r")
    bash.until("got hello")


def test_forty_columns_are_enough_for_the_view(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "sleep", "1", columns=40)
    started.until(lambda: "iB" in started.screen.text()[22])
    view = started.screen.text()[20:]
    assert view[0].startswith("── sleep 1 ─")
    assert "cpu" in view[1]
    assert started.wait() == 0


def test_a_terminal_too_small_for_a_view_has_none(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "sh", "-c", "stty size", rows=6)
    assert started.wait() == 0
    assert "6 80" in started.output
    assert "too few for the live view" in started.output


def test_no_color_leaves_the_view_and_takes_the_colours(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "sleep", "0.6", env={"NO_COLOR": "1"})
    assert started.wait() == 0
    assert "memory" in started.output
    assert not re.search(r"\x1b\[[1-9][0-9;]*m", started.output)
    coloured = on_terminal("run", "--live", "sleep", "0.6")
    coloured.wait()
    assert re.search(r"\x1b\[[1-9][0-9;]*m", coloured.output)


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_dumb_terminal_gets_no_escape_sequence(on_terminal: Start, term: str | None) -> None:
    started = on_terminal("run", "--live", "sh", "-c", "echo out; sleep 5.5", env={"TERM": term})
    assert started.wait() == 0
    assert "\x1b" not in started.output
    assert re.search(r"^cameleer: 0:05, cpu .*%, memory ", started.output, re.MULTILINE)


def test_without_utf8_the_view_is_ascii(on_terminal: Start) -> None:
    started = on_terminal("run", "--live", "sleep", "0.6", env={"LC_ALL": "C"})
    started.wait()
    assert "memory" in started.output
    assert started.output.isascii()


def test_the_view_follows_the_size_of_the_terminal(on_terminal: Start) -> None:
    import fcntl
    import struct

    started = on_terminal("run", "--live", "sh", "-c", "trap 'stty size' WINCH; echo ready; " + LOOP)
    started.until("ready")
    fcntl.ioctl(started.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    started.until("26 100")
    started.send("\x03")
    assert started.wait() == 130


def test_the_view_comes_by_itself_where_the_output_goes_to_files(session: Start) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} run sh -c 'printf to-the; echo -file; sleep 0.7' >out 2>err; echo over\r")
    bash.until(lambda: any(line.startswith("memory") for line in bash.screen.text()))
    bash.until("over")
    assert "to-the-file" not in bash.output
    bash.send("cat out err\r")
    bash.until("to-the-file")
    bash.until("exited with 0")


@pytest.mark.parametrize(
    "line", ["run sleep 0.5", "run sleep 0.5 2>err", "run sleep 0.5 2>&1 | cat", "run --quiet sleep 0.5 >out 2>err"]
)
def test_the_view_does_not_come_by_itself_where_others_may_write_to_the_terminal(session: Start, line: str) -> None:
    bash = shell(session)
    bash.send(f"{CAMELEER} {line}; echo over\r")
    bash.until("over")
    assert "\x1b[" not in bash.output.split("prepared\r\n")[1]


def test_warnings_are_shown_above_the_view(on_terminal: Start, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import logging\nfrom cameleer import hookimpl\n\n@hookimpl\ndef poststart(request):\n"
        "    logging.getLogger('cameleer').warning('something is odd')\n"
    )
    started = on_terminal("run", "--live", "--plugin", "./noisy.py", "sleep", "0.5")
    assert started.wait() == 0
    assert "cameleer: something is odd\r\n" in plain(started.output)


def test_watching_draws_by_itself_until_ctrl_c(session: Start) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        bash = shell(session)
        bash.send(f"{CAMELEER} watch {sleeper.pid}; echo status=$?\r")
        bash.until(lambda: any(line.startswith("memory") for line in bash.screen.text()))
        bash.send("\x03")
        bash.until("still runs")
        bash.until("status=0")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_picture_of_the_readme_is_made_of_the_real_view(drawing: Any) -> None:
    screen = drawing.record(1.5)
    assert any(line.startswith("memory") for line in screen.text())
    picture = drawing.svg(screen)
    import xml.etree.ElementTree as tree

    assert tree.fromstring(picture).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in picture
    assert os.fspath(Path.home()) not in picture
