"""A library on a Ray cluster of two nodes: the same result as in one process, also when a node is lost."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from tests.support.library_tools import WordEncoder, write_documents

pytest.importorskip("ray", reason="attends and encodes on a cluster; it comes with keywise[cluster]")

DOCUMENTS = 48
KEYS = 6000


class Sleeper(WordEncoder):
    """Takes long enough that a node can be lost meanwhile."""

    def encode(self, texts: Any) -> Any:
        time.sleep(1.0)
        return super().encode(texts)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    # Workers import this file and the encoder beside it.
    environment = {"env_vars": {"PYTHONPATH": ":".join(path for path in sys.path if path)}}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    ray.init(address=started.address, log_to_driver=False, runtime_env=environment)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def second_node(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def after(seconds: float, work: Any) -> threading.Thread:
    thread = threading.Timer(seconds, work)
    thread.start()
    return thread


def assert_same(found: Any, wanted: Any) -> None:
    for name in ("weights", "rows", "value", "entropy", "lse", "top_mass"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.matches == wanted.matches


def test_attention_on_two_nodes_and_with_one_lost(tmp_path: Path, cluster: Any, second_node: Any) -> None:
    library = kw.Library.open(tmp_path / "memory", "a")
    random = np.random.default_rng(0)
    for first in range(0, KEYS, KEYS // 40):
        library.add_keys(random.normal(size=(KEYS // 40, 96)), number=np.arange(first, first + KEYS // 40))
    queries = random.normal(size=(3, 96))
    asked: dict[str, Any] = {"temperature": 4.0, "where": "number % 5 != 0", "values": "key", "top": 7}
    alone = library.attend(queries, **asked)
    assert_same(library.attend(queries, **asked, engine="ray"), alone)

    losing = after(0.3, lambda: cluster.remove_node(second_node, allow_graceful=False))
    for _ in range(3):
        assert_same(library.attend(queries, **asked, engine="ray"), alone)
    losing.join()
    assert second_node not in cluster.list_all_nodes()


def test_adding_on_two_nodes_with_one_lost(tmp_path: Path, cluster: Any, second_node: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("keywise.library.cluster.FILES_PER_TASK", 6)
    paths = write_documents(tmp_path / "documents", DOCUMENTS)
    (tmp_path / "documents" / "picture.txt").write_bytes(b"\0")
    losing = after(4.0, lambda: cluster.remove_node(second_node, allow_graceful=False))
    library = kw.Library.open(tmp_path / "library", "a", encoder=Sleeper())
    done = library.add([tmp_path / "documents"], engine="ray")
    losing.join()
    assert second_node not in cluster.list_all_nodes()
    assert sorted(done.added) == [str(path) for path in paths]
    assert list(done.skipped) == [str(tmp_path / "documents" / "picture.txt")]
    assert done.sentences == DOCUMENTS * 6

    alone = kw.Library.open(tmp_path / "alone", "a", encoder=WordEncoder())
    alone.add([tmp_path / "documents"])
    columns = ["document", "sentence", "text", "key"]
    rows, wanted = (each.dataset.to_table(columns=columns).to_pylist() for each in (library, alone))
    assert rows == wanted
    assert len(library.versions()) == len(alone.versions())
