"""Missing memory, scratch that is freed, results whose memory is reused."""

from __future__ import annotations

import sys

import pytest

from helpers import check

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits memory")

# One call in a child process for each limit, from no free memory to enough. Each large allocation
# is a separate mapping, so each of them fails once.
EXHAUST = """
import os, resource, sys, numpy as np, fastopt as fo
from fastopt import _core
_core.set_num_threads(2, beyond=True)
_core.tuning.wake_size = 0
rng = np.random.default_rng(0)
DONE, NOTHING, WRONG = 40, 41, 42

def try_all(call, out, step, steps):
    expected = call()
    truth = out.copy()
    told = []
    for spare in range(0, step * steps, step):
        out[...] = 7
        child = os.fork()
        if child == 0:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
            try:
                loss = call()
            except MemoryError:
                loss = None
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            if loss is None:
                os._exit(NOTHING if (out == 7).all() else WRONG)
            os._exit(DONE if loss == expected and np.array_equal(out, truth) else WRONG)
        told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert set(told) == {NOTHING, DONE}, told
    assert told[0] == NOTHING and told[-1] == DONE, told
"""

CASES = {
    # In this order: class weights, rounded weights, scratch.
    "weighted": """
x = rng.standard_normal((2, 500_000)).astype(np.float32)
weight, y, out = rng.uniform(1, 2, 500_000), np.array([3, 4]), np.empty_like(x)
ce = fo.CrossEntropyLoss(weight, logit_softcap=30.0)
try_all(lambda: ce.value_and_grad(x, y, out=out)[0], out, 1 << 18, 64)
""",
    "nll": """
x = rng.standard_normal((2, 500_000)).astype(np.float32)
weight, y, out = rng.uniform(1, 2, 500_000), np.array([3, 4]), np.empty_like(x)
nll = fo.NLLLoss(weight)
try_all(lambda: nll.value_and_grad(x, y, out=out)[0], out, 1 << 18, 40)
""",
    # The class axis is not the last: each thread needs 32 columns, but one thread can do all.
    "columns": """
x = rng.standard_normal((1, 20_000, 64)).astype(np.float32)
y, out = rng.integers(0, 20_000, (1, 64)), np.empty_like(x)
ce = fo.CrossEntropyLoss()
try_all(lambda: ce.value_and_grad(x, y, out=out)[0], out, 1 << 17, 80)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_memory_that_runs_out(case: str) -> None:
    check(EXHAUST + CASES[case], MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")


def test_without_memory_for_a_pool_the_caller_works_alone() -> None:
    check(
        """
import os, resource, numpy as np, fastopt as fo
from fastopt import _core
_core.set_num_threads(2, beyond=True)
_core.tuning.wake_size = 0
x = np.random.default_rng(0).standard_normal(600_000, dtype=np.float32)
y, out = np.zeros_like(x), np.empty_like(x)
mse = fo.MSELoss()
expected = mse.value_and_grad(x, y, out=out)[0]
child = os.fork()  # it has no pool yet
if child == 0:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    hog = []
    try:
        while True:  # what the heap still holds; a pool is larger than this
            hog.append(bytearray(100_000))
    except MemoryError:
        pass
    os._exit(40 if mse.value_and_grad(x, y, out=out)[0] == expected else 42)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 40, code
"""
    )


def test_large_scratch_is_given_back() -> None:
    # 51 MB for each thread: 32 columns of 100,000 classes, for logits and probabilities.
    check(
        r"""
import re, numpy as np, fastopt as fo
from fastopt import _core
_core.set_num_threads(2, beyond=True)
_core.tuning.wake_size = 0

def megabytes(field):
    return int(re.search(field + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1000

x, y, out = (np.zeros((64, 100_000), order="F") for _ in range(3))
for a in (x, y, out):
    a[...] = 1e-5
small = slice(0, 1000)
ce = fo.CrossEntropyLoss(label_smoothing=0.1)
ce.value_and_grad(x[:, small], y[:, small], out=out[:, small])
before = megabytes("VmRSS")
loss, _ = ce.value_and_grad(x, y, out=out)
assert np.isfinite(loss)
assert megabytes("VmHWM") - before > 40, "no scratch was needed"
assert megabytes("VmRSS") - before < 10, megabytes("VmRSS") - before
"""
    )


# 40 MB of results, and the memory of the process in the system.
RESULTS = r"""
import os, re, numpy as np, fastopt as fo
from fastopt.functional import relu
x = np.linspace(-1, 1, 10_000_000, dtype=np.float32).reshape(10, -1)
truth = np.maximum(x, 0)

def address(a):
    return a.__array_interface__["data"][0]

def held():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")

def busy():  # bytes that the system may not take back, if it can tell
    try:
        facts = dict(re.findall(r"(\w+): +(\d+) kB", open("/proc/self/smaps_rollup").read()))
    except FileNotFoundError:
        return None
    return (int(facts["Rss"]) - int(facts["LazyFree"])) << 10
"""


def test_a_call_needs_no_new_pages() -> None:
    # Targets, losses, log-sum-exps (512 KB each) and what is correct (64 KB), of batches that are
    # nearly alike.
    check("""
import resource, numpy as np, fastopt as fo
fo.set_num_threads(1)
rng = np.random.default_rng(0)
ce = fo.CrossEntropyLoss()
batches = []
for n in (65536, 65530):
    x = rng.standard_normal((n, 3), dtype=np.float32)
    batches.append((x, rng.integers(0, 3, n), np.empty_like(x)))
def calls(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        for x, y, grad in batches:
            ce.value_and_stats(x, y, out=grad)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
calls(3)
faults = calls(20)
assert faults < 400, faults  # as many in each call if all were new
""")


def test_the_memory_of_a_dead_result_is_used_again() -> None:
    check(
        RESULTS
        + """
first, second = relu(x), relu(-x)
assert not np.shares_memory(first, second)
place, view = address(first), second[3:]
del second
second = relu(-x)
assert not np.shares_memory(view, second), "a view still needs it"
del first
third = relu(x)
assert address(third) == place and np.array_equal(third, truth)
_, grad = fo.MSELoss().value_and_grad(x, truth)
del grad
targets = np.zeros(10, np.int64)
losses, grads = set(), []
for _ in range(4):  # as in a loop: the last one is alive in the next call
    loss, grad = fo.CrossEntropyLoss().value_and_grad(x, targets)
    losses.add(loss)
    grads.append(address(grad))
assert len(losses) == 1 and len(set(grads)) == 2, grads
assert np.array_equal(third, truth) and np.array_equal(view, np.maximum(-x, 0)[3:])
for a in (third, view, second, grad):
    assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
"""
    )


def test_few_dead_results_are_kept_and_the_system_may_take_them() -> None:
    check(
        RESULTS
        + """
other = relu(x)  # starts the threads
size, before, resident = x.nbytes, held(), busy()
results = [relu(x) for _ in range(7)]
assert 7 * size <= held() - before < 8 * size
if resident is not None:
    assert busy() - resident > 6.5 * size
del results
assert 4 * size <= held() - before < 5 * size
if resident is not None:
    assert busy() - resident < size / 4
half = [relu(x[:9]) for _ in range(5)]  # another size: the older ones go
del half
assert 3.5 * size <= held() - before < 4 * size
""",
        MALLOC_ARENA_MAX="1",
    )


def test_dead_results_before_and_after_a_fork() -> None:
    check(
        RESULTS
        + """
relu(x)  # dropped at once
child = os.fork()
sign = -1 if child == 0 else 1
result = relu(sign * x)
assert np.array_equal(result, np.maximum(sign * x, 0))
if child == 0:
    os._exit(40)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 40
assert np.array_equal(result, truth)
"""
    )


def test_a_result_for_which_there_is_no_memory() -> None:
    check(
        RESULTS
        + """
import resource
result = relu(x)
dead = [relu(x[:9]) for _ in range(2)]  # they make room for it, but not for two
del dead
resource.setrlimit(resource.RLIMIT_AS, (held() + x.nbytes // 2, resource.RLIM_INFINITY))
other = relu(x)
assert np.array_equal(other, truth)
try:
    [relu(x), relu(x)]
except MemoryError as error:
    assert "(10, 1000000)" in str(error), error
else:
    raise AssertionError("there was memory")
assert np.array_equal(result, truth)
del result
assert np.array_equal(relu(x), truth)
"""
    )
