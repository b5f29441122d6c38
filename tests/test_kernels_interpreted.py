"""The tests of the kernels on the CPU, in a process whose triton interprets from the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this system")

from segdeconv.whitening import inverse_root

TESTS = Path(__file__).parent


def test_the_kernels_pass_their_tests_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_kernels.py"],
        capture_output=True,
        text=True,
        cwd=TESTS,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_a_kernel_without_a_gpu_is_one_sentence():
    with pytest.raises(ValueError, match="the Triton kernels run on CUDA, not on cpu; move"):
        inverse_root(torch.eye(4), 5, "triton")
