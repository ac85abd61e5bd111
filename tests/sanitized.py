"""Run the tests of the kernels under ttsem, which executes the compiler's IR on the CPU: python -m tests.sanitized

It fails on an access out of bounds, on a race between programs and on a read of memory that was never written. The
tests are those that run on a GPU, in float32, float16 and bfloat16; each file of them is a process of its own.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

TESTS = {
    "test_conv.py": "small_blocks or channel_by_channel or float16",
    "test_epilogues.py": "not float64 and not derivatives",
    "test_norm.py": "not float64",
    "test_pool.py": "not float64",
    "test_product.py": "not float64 and not derivatives",
    "test_connectivity.py": "not derivatives and not layers",
}  # without what compiles a graph, for which torch wants a true GPU


def run(name: str) -> tuple[str, subprocess.CompletedProcess]:
    command = [sys.executable, "-m", "ttsem.sanitize", "pytest", "-q", f"tests/kernels/{name}", "-k", TESTS[name]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return name, subprocess.run(command, env=environment, capture_output=True, text=True)


def main() -> int:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        results = list(executor.map(run, TESTS))
    for name, result in results:
        print(f"{name}: {result.stdout if result.returncode else result.stdout.splitlines()[-1]}{result.stderr}")
    return int(any(result.returncode for _, result in results))


if __name__ == "__main__":
    sys.exit(main())
