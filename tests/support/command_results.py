"""What a command that ran in this process returned and printed."""

from __future__ import annotations

__all__ = ["refused"]


def refused(code: int, out: str, err: str) -> str:
    """The one line on standard error of a command that was refused: exit code 2, and nothing on standard output."""
    assert (code, out) == (2, "")
    assert err.startswith("decoding: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == err.count("\n") == 1
    assert "Traceback" not in err
    return err
