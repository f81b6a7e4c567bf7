"""`pause_garbage_collection`: off inside the block, as before afterwards."""

from __future__ import annotations

import gc

import pytest

from keywise.util.garbage import pause_garbage_collection


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_off_inside_the_block_and_as_before_afterwards(was_enabled: bool) -> None:
    def fail_inside() -> None:
        with pause_garbage_collection():
            assert not gc.isenabled()
            raise RuntimeError("inside")

    try:
        if not was_enabled:
            gc.disable()
        with pytest.raises(RuntimeError, match="inside"):
            fail_inside()
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
