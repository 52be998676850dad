"""Tables and progress bars: plain text in a file or a pipe, and no remains of a bar on a terminal."""

import io
import sys

import pytest

from video_rs import terminal
from video_rs.cli.common import counter, run
from video_rs.errors import UserError

ROWS = [("[red]a b[/red] :smile:", "1.5"), ("\udcff" + "x" * 300, "10")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen_of(monkeypatch):
    """A terminal of 40 columns for stdout and stderr. Not a fixture: pytest replaces both after fixtures."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "40", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)
    both = Terminal()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    return both


def test_a_table_in_a_pipe_is_plain(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    lines = terminal.table(ROWS, ("name", "seconds"), right=[1])
    rows = [("name", "seconds"), ROWS[0], ("\\udcff" + "x" * 300, "10")]
    assert lines == [f"{name:<306}  {number:>7}" for name, number in rows]


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_table_on_a_terminal_keeps_numbers_and_names_whole(monkeypatch, term):
    screen_of(monkeypatch)
    monkeypatch.setenv("TERM", term)
    lines = terminal.table(ROWS, ("name", "seconds"))
    assert ("\x1b[1m" in lines[0]) == (term != "dumb")
    assert lines[1:] == terminal.table(ROWS, ("name", "seconds"), plain=True)[1:] and len(lines) == 3
    assert terminal.table([("a", "b")], plain=True) == ["a  b"] and terminal.table([]) == []


def test_a_table_in_a_notebook_is_returned(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert terminal.table([("a", "b")]) == ["a  b"]


def test_a_dumb_terminal_has_no_bar(monkeypatch):
    screen = screen_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    count = counter(2, "testing", "files")
    count(2)
    assert screen.getvalue() == "testing: 2/2 files\n"


def test_a_bar_in_a_pipe_is_nothing(capsys):
    bar = terminal.Bar(3, "testing")
    bar.advance()
    terminal.write("a line")
    bar.close()
    assert not bar.visible and capsys.readouterr() == ("a line\n", "")


def test_lines_are_written_above_the_bar(monkeypatch):
    screen = screen_of(monkeypatch)
    bar = terminal.Bar(3, "[b]testing")
    bar.note("loss 0.5")
    terminal.write("a line of [red] " + "x" * 60)
    bar.advance(2)
    bar._drawn = 0
    bar.advance(0)
    shown = screen.getvalue()
    assert "[b]testing" in shown and "2/3" in shown and "a line of [red] " + "x" * 60 + "\n" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is not hidden
    bar.close()
    assert screen.getvalue().endswith("\x1b[2K")  # the bar is erased
    bar.advance()


def test_lines_for_a_pipe_go_there_beside_a_bar(monkeypatch):
    screen = screen_of(monkeypatch)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    bar = terminal.Bar(3)
    terminal.write("a line")
    bar.close()
    assert sys.stdout.getvalue() == "a line\n" and "a line" not in screen.getvalue()


def test_an_error_stands_alone(monkeypatch):
    screen = screen_of(monkeypatch)

    def fail(argv):
        terminal.Bar(3).advance()
        raise OSError(28, "No space left on device", "x.pt")

    assert run(fail, []) == 3
    assert screen.getvalue().endswith("\x1b[2Kerror: x.pt: No space left on device\n")


HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\rd\x9bmé\u202egpj.\u2066\x7f\udcff"
ESCAPED = r"a\x1b[2Jb\x1b]0;title\x07c\rd\x9bmé\u202egpj.\u2066\x7f\udcff"


def test_control_characters_of_names_do_not_reach_the_terminal(monkeypatch):
    screen = screen_of(monkeypatch)

    def main(argv):
        print(HOSTILE, HOSTILE, sep="\n")
        print(HOSTILE, file=sys.stderr)
        bar = terminal.Bar(3, HOSTILE)
        bar.note(HOSTILE)
        terminal.write(HOSTILE + "\n" + HOSTILE)
        bar.close()
        print(*terminal.table([(HOSTILE, "1")], (HOSTILE, "b")), sep="\n")
        raise UserError(HOSTILE)

    assert run(main, []) == 2
    shown = screen.getvalue()
    assert shown.count("gpj") >= 8 and f"{ESCAPED}\\n{ESCAPED}\n" in shown and "error: a\\x1b[2J" in shown
    for code in ("\x1b[2J", "\x1b]0", "\x07", "c\rd", "\x9b", "\u202e", "\u2066", "\x7f"):
        assert code not in shown
    assert (sys.stdout, sys.stderr) == (screen, screen)


def test_counts_are_whole():
    found = [terminal.counted(number, "row") for number in (1, 20_000, 12_345, 2.5)]
    assert found == ["1 row", "20000 rows", "12345 rows", "2.5 rows"]
