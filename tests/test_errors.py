"""Messages, whatever they quote."""

from pdserve.errors import ModelError


def test_what_breaks_a_line_or_drives_a_terminal_is_escaped() -> None:
    error = ModelError("m\x1b[2J has\n\0\x85\u2028 and \ud800, 饮料 in ‘a\xa0b’")
    assert error.message == str(error) == r"m\x1b[2J has\n\x00\x85\u2028 and \ud800, 饮料 in ‘a" + "\xa0b’"


def test_a_giant_is_shortened_and_keeps_its_ends() -> None:
    message = ModelError("m has " + "\0" * 10**6 + "; fetch it again.").message
    assert len(message) <= 2_000
    assert message.startswith(r"m has \x00")
    assert " … " in message
    assert message.endswith(r"\x00; fetch it again.")


def test_an_ordinary_one_stays() -> None:
    text = f"C:\\models has no file 'x'; {'it holds a, ' * 100}fetch it again."
    assert ModelError(text).message == text
