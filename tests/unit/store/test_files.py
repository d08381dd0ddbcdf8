"""What writes a run folder follows no link, whoever has put it there meanwhile."""

import pytest

from siri.store import files


def test_nothing_is_appended_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"whole")
    link.symlink_to(target)
    with pytest.raises(OSError):
        files.append(link, b"more", fsync=False)
    assert target.read_bytes() == b"whole"
