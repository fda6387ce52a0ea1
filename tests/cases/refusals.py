"""What a user's mistake looks like."""

from __future__ import annotations


def refused(result, *words, status=2):
    """``result`` of the command is one line with all ``words``, and this exit status."""
    code, out, err = result
    assert code == status, (code, out, err)
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("fastlg: "), err
    assert "Traceback" not in err + out
    for word in words:
        assert str(word) in lines[0], lines[0]
