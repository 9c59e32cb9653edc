"""An error in one line; its other functions have their examples in the docstrings."""

from wua_mlflow.errors import WORDED, one_line


def test_a_message_for_the_user_stands_alone_and_a_line_is_cut_at_its_limit():
    for error, line in (
            (FileNotFoundError("no\tfile"), "no file"), (KeyError("a"), "KeyError: 'a'"),
            (ValueError(), "ValueError"), (ValueError("two\n lines"), "two lines")):
        assert one_line(error, bare=WORDED) == line
    error = RuntimeError("x" * 10_000)
    assert one_line(error, limit=500) == f"RuntimeError: {'x' * 485}…"
    assert len(one_line(error)) == 300
