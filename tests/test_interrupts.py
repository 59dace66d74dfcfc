"""Interrupts wait for the end of the outermost block."""

from __future__ import annotations

import signal

import pytest

from purifier.interrupts import Holder, Terminated


def test_outside_a_block_an_interrupt_is_raised_at_once() -> None:
    with pytest.raises(Terminated) as ended:
        Holder().deliver(Terminated(15))
    assert ended.value.code == 143


def test_inside_blocks_it_waits_for_the_end_of_the_outermost_one() -> None:
    holder, done = Holder(), []
    with pytest.raises(KeyboardInterrupt):
        with holder:
            with holder:
                holder.deliver(KeyboardInterrupt())
                assert holder.number == signal.SIGINT
                holder.deliver(Terminated(15))
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"] and holder.number == 0
    with holder:
        pass
