"""The bell of the mailbox."""

from pykvm.pc.bell import Bell


def test_every_write_rings_and_no_read_does():
    rung = []
    bell = Bell(lambda: rung.append(1))
    for offset, size, value in ((0, 4, 1), (0xFFF, 1, 0), (8, 8, 7)):
        bell.write(offset, size, value)
    assert bell.read(0, 4) == 0
    assert len(rung) == 3
