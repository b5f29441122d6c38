"""The tests of the kernels on the CPU, in a process whose triton interprets from the start."""

import json
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


def test_the_benchmark_of_the_kernels_writes_its_figures(tmp_path):
    arguments = ["--tiny", "--seconds", "0", "--out", tmp_path / "kernels"]
    subprocess.run(
        [sys.executable, TESTS.parent / "benchmarks" / "kernels.py", *arguments],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert record["roots"]["2 x 9"]["newton_schulz / triton"]["median"] > 0
    assert record["moments"]["tiny"]["seconds"].keys() == {"torch", "torch16", "triton"}
    assert "| 2 x 9 |" in (tmp_path / "kernels.md").read_text()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_a_kernel_without_a_gpu_is_one_sentence():
    with pytest.raises(ValueError, match="the Triton kernels run on CUDA, not on cpu; move"):
        inverse_root(torch.eye(4), 5, "triton")


KERNELS = ["_root_kernel", "_root_backward_kernel", "_gram_kernel", "_gram_backward_kernel"]


def compiled(name, constants, **options):
    """A kernel as compiled for cards of compute capability 8."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from segdeconv.whitening import kernels

    others = dict.fromkeys(("size", "steps", "means", "roots", "rows_each"), "i32")
    others |= {"strides": ("i32",) * 4, "grad_strides": ("i32",) * 4, "sizes": ("i32",) * 7}
    constants = constants | {"GRID": (3, 3, 3, 3, 1, 1, 1, 1, 1)}
    kernel = getattr(kernels, name)
    signature = {
        argument: "constexpr" if argument in constants else others.get(argument, "*fp32")
        for argument in kernel.arg_names
    }
    used = {argument: constants[argument] for argument in signature if argument in constants}
    source, target = ASTSource(kernel, signature, used), GPUTarget("cuda", 80, 32)
    return compile(source, target=target, options=options)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_compiles_for_a_gpu_that_need_not_be_there(name):
    precision = "ieee" if "root" in name else "tf32"
    constants = {"PADDED": 16, "TILE": 16, "ROWS": 16, "PRECISION": precision}
    assert compiled(name, constants).asm["cubin"]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", KERNELS)
def test_the_largest_kernels_fit_the_shared_memory_of_any_such_card(name):
    from segdeconv.whitening import kernels

    constants = {"PADDED": kernels.LARGEST_ROOT, "TILE": kernels.TILE, "ROWS": kernels.ROWS}
    options = {"num_warps": 4 if "root" in name else kernels.TILE // 8}
    if name == "_gram_backward_kernel":
        options["num_stages"] = kernels.BACKWARD_STAGES
    largest = compiled(name, constants | {"PRECISION": "tf32x3"}, **options)
    assert largest.metadata.shared <= 99 * 2**10  # the least of compute capability 8.x
