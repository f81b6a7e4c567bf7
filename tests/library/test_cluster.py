"""A library on a Ray cluster of two nodes: results equal those of one process, also when a node is lost."""

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

pytest.importorskip("ray", reason="attends and encodes on a cluster; it is part of keywise[cluster]")

DOCUMENTS = 48
KEYS = 6000


class SleepingEncoder(WordEncoder):
    """Takes long enough for a node to be lost meanwhile."""

    def encode(self, texts: Any) -> Any:
        time.sleep(1.0)
        return super().encode(texts)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    # Workers import this file and tests.support.
    environment = {"env_vars": {"PYTHONPATH": ":".join(path for path in sys.path if path)}}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def second_node(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def start_timer(seconds: float, call: Any) -> threading.Thread:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def assert_same_attention(actual: Any, expected: Any) -> None:
    for name in ("weights", "rows", "value", "entropy", "lse", "top_mass"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    assert actual.matches == expected.matches


def test_attention_on_two_nodes_equals_local_attention_when_one_is_lost(
    tmp_path: Path, cluster: Any, second_node: Any
) -> None:
    library = kw.Library.open(tmp_path / "library", "a")
    generator = np.random.default_rng(0)
    for first in range(0, KEYS, KEYS // 40):
        library.add_keys(generator.normal(size=(KEYS // 40, 96)), number=np.arange(first, first + KEYS // 40))
    queries = generator.normal(size=(3, 96))
    options: dict[str, Any] = {"temperature": 4.0, "where": "number % 5 != 0", "values": "key", "top": 7}
    expected = library.attend(queries, **options)
    assert_same_attention(library.attend(queries, **options, engine="ray"), expected)

    node_loss = start_timer(0.3, lambda: cluster.remove_node(second_node, allow_graceful=False))
    for _ in range(3):
        assert_same_attention(library.attend(queries, **options, engine="ray"), expected)
    node_loss.join()
    assert second_node not in cluster.list_all_nodes()


def test_add_on_two_nodes_writes_each_document_once_when_one_is_lost(
    tmp_path: Path, cluster: Any, second_node: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("keywise.library.cluster.FILES_PER_TASK", 6)
    paths = write_documents(tmp_path / "documents", DOCUMENTS)
    (tmp_path / "documents" / "picture.txt").write_bytes(b"\0")
    node_loss = start_timer(4.0, lambda: cluster.remove_node(second_node, allow_graceful=False))
    library = kw.Library.open(tmp_path / "library", "a", encoder=SleepingEncoder())
    result = library.add([tmp_path / "documents"], engine="ray")
    node_loss.join()
    assert second_node not in cluster.list_all_nodes()
    assert sorted(result.added) == [str(path) for path in paths]
    assert list(result.skipped) == [str(tmp_path / "documents" / "picture.txt")]
    assert result.sentences == DOCUMENTS * 6

    local = kw.Library.open(tmp_path / "local", "a", encoder=WordEncoder())
    local.add([tmp_path / "documents"])
    columns = ["document", "sentence", "text", "key"]
    # A commit every few seconds has the documents of the tasks that ended meanwhile.
    rows, local_rows = (
        sorted(each.dataset.to_table(columns=columns).to_pylist(), key=lambda row: (row["document"], row["sentence"]))
        for each in (library, local)
    )
    assert rows == local_rows
    assert len(library.versions()) > len(local.versions())
