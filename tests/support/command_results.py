"""What a command that ran in this process returned and printed."""

from __future__ import annotations

__all__ = ["refused"]


def refused(result: tuple[int, str, str]) -> str:
    """The one line on standard error of a command that was refused: exit code 2, and nothing on standard output."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    return err
