"""Memory is linear in tokens for output, statistics and gradients: nothing of size queries x keys is stored."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOKENS = 16_384
# One head's scores alone would take 1 GiB in float32.
ALLOWED_MIB = 96

CODE = """
import resource, sys
import numpy as np
import keywise as kw
from keywise.attention.backward import attend_backward, attend_forward

def attend(tokens):
    x = np.random.default_rng(0).standard_normal((1, 1, tokens, 16)).astype(np.float32)
    mask = kw.Mask(causal=True, window=(tokens // 2, None))
    with kw.using(sys.argv[1]):
        if sys.argv[2] == "attend":
            kw.attend(x, x, x, mask=mask)
        elif sys.argv[2] == "attend_backward":
            forward = attend_forward(x, x, x, mask=mask)
            attend_backward(x, x, x, x, output=forward.output, lse=forward.lse, mask=mask)
        else:
            kw.attention_stats(x, x, x, mask=mask, top_k=8, segment_bounds=list(range(0, tokens + 1, tokens // 64)))

kw.set_num_threads(2)
attend(512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(int(sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("function", ["attend", "attention_stats", "attend_backward"])
def test_peak_memory_is_linear(kernel: str, function: str) -> None:
    command = [sys.executable, "-c", CODE, kernel, function, str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < ALLOWED_MIB
