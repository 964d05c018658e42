"""The host process is left alone: threads, fork, floating-point control, imports, memory."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, CHUNK, DTYPES, FUNCTIONS, Case
from fastopt import _core
from fastopt._types import FloatArray
from helpers import PEAK, PEAK_NEEDS, SEES_PEAKS, check, run, same_bits

BIG_STEP = """
import os, sys, numpy as np, fastopt as fo
from fastopt import _core
_core.set_num_threads(3, beyond=True)
p, g = np.ones(300_000, np.float32), np.full(300_000, 0.5, np.float32)
q = p.copy()
opt = fo.AdamW([p])
opt.step([g])
fo.reference.AdamW([q]).step([g])
assert np.array_equal(p, q)
"""


# -- fork, threads, exit -------------------------------------------------------------------------


def test_fork_after_a_parallel_step() -> None:
    out = check(
        BIG_STEP
        + """
for generation in range(3):  # children of children too
    pid = os.fork()
    if pid == 0:
        opt.step([g])
        r = np.ones(300_000, np.float32)
        ref = fo.reference.AdamW([r])
        for _ in range(generation + 2):
            ref.step([g])
        if not np.array_equal(p, r):
            os._exit(1)
        continue
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status))
print("grandchild", flush=True)
os._exit(0)
"""
    )
    assert out == "grandchild\n"


def test_exit_with_a_live_pool_and_with_a_running_step() -> None:
    assert check(BIG_STEP + "print('done')") == "done\n"
    check(
        BIG_STEP
        + """
import threading
p, g = np.ones(5_000_000, np.float32), np.ones(5_000_000, np.float32)
opt = fo.SGD([p], lr=1e-3)
logits, targets = np.zeros((1000, 2000), np.float32), np.zeros(1000, np.int64)
began = threading.Semaphore(0)
def step_forever():
    while True:
        opt.step([g])
        began.release()
def loss_forever():
    while True:
        fo.CrossEntropyLoss().value_and_grad(logits, targets, out=logits)
        began.release()
threading.Thread(target=step_forever, daemon=True).start()
threading.Thread(target=loss_forever, daemon=True).start()
for _ in range(4):
    began.acquire()
"""
    )


# The states of the threads of a process, from the system. Only a thread that sleeps until something
# wakes it is asleep every time; `check` ends a test whose thread never sleeps.
THREADS = """
import os, re, time
def read(thread, field):
    status = open(f"/proc/self/task/{thread}/status").read()
    return re.search(rf"^{field}:\\s+(\\S+)", status, re.M)[1]
def threads():
    return {int(task) for task in os.listdir("/proc/self/task")}
def wait_until_asleep(workers):
    while not all(read(worker, "State") == "S" for worker in workers):
        time.sleep(0.001)
"""
# The threads of fastopt are `threads() - before`: a BLAS has others.
WORKERS = THREADS + "import fastopt, numpy\nbefore = threads()\n" + BIG_STEP
READS_PROC = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks for threads in /proc"
)


@READS_PROC
def test_the_pool_sleeps_between_steps_that_are_far_apart() -> None:
    check(
        WORKERS
        + """
workers = threads() - before
assert len(workers) == 2
for _ in range(3):
    wait_until_asleep(workers)
    opt.step([g])
wait_until_asleep(workers)
def counts():
    return {worker: read(worker, "voluntary_ctxt_switches") for worker in workers}
before = counts()
for _ in range(1000):  # none is awake in between
    assert counts() == before
"""
    )


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
def test_a_worker_that_wakes_up_keeps_off_its_callers_core() -> None:
    check(
        THREADS
        + """
import numpy as np, fastopt as fo
from fastopt import _core
one, two = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, {one, two})
_core.set_num_threads(2, beyond=True)
before = threads()
p, g = np.ones(1 << 20, np.float32), np.ones(1 << 20, np.float32)
opt = fo.SGD([p], lr=1e-6)
opt.step([g])
(worker,) = threads() - before
def step_on(core):
    os.sched_setaffinity(0, {core})
    wait_until_asleep({worker})
    opt.step([g])
for mine, other in [(one, two), (two, one), (one, two), (two, one)]:
    step_on(mine)
    assert os.sched_getaffinity(worker) == {other}
# Where it has one core only, it stays there.
os.sched_setaffinity(worker, {two})
step_on(two)
assert os.sched_getaffinity(worker) == {two}
step_on(one)
step_on(two)
assert os.sched_getaffinity(worker) == {two}  # nobody gave it another
"""
    )


@READS_PROC
def test_workers_of_a_larger_team_rest_in_a_smaller_one() -> None:
    check(
        WORKERS
        + """
_core.tuning.wake_size = 0
_core.set_num_threads(4, beyond=True)
opt.step([g])
workers = threads() - before
assert len(workers) == 3
_core.set_num_threads(2, beyond=True)
def woken(steps):  # by worker, how often it has gone to sleep again
    counts = []
    for _ in range(steps + 1):
        wait_until_asleep(workers)
        counts.append({worker: int(read(worker, "voluntary_ctxt_switches")) for worker in workers})
        opt.step([g])
    return sorted(counts[-1][worker] - counts[0][worker] for worker in workers)
woken(1)  # the step that makes them rest
first, second, third = woken(20)
assert first == second == 0 and third >= 20, (first, second, third)
_core.set_num_threads(4, beyond=True)  # and join again
woken(1)
assert woken(20)[0] >= 20
"""
    )


def test_different_optimizers_in_different_threads() -> None:
    grads = [np.random.default_rng(i).standard_normal(150_000).astype(np.float32) for i in range(4)]
    params = [np.ones(150_000, np.float32) for _ in grads]

    def train(i: int) -> None:
        opt = fo.AdamW([params[i]])
        for _ in range(20):
            opt.step([grads[i]])

    _core.set_num_threads(3, beyond=True)
    workers = [threading.Thread(target=train, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for param, grad in zip(params, grads, strict=True):
        expected = np.ones(150_000, np.float32)
        reference = fo.reference.AdamW([expected])
        for _ in range(20):
            reference.step([grad])
        assert same_bits(param, expected)


def test_one_optimizer_in_two_threads_is_refused() -> None:
    param, grad = np.zeros(8_000_000, np.float32), np.ones(8_000_000, np.float32)
    opt = fo.SGD([param], lr=1.0)
    counts = {"done": 0, "refused": 0}
    stop = threading.Event()

    def step_often() -> None:
        while not stop.is_set():
            try:
                opt.step([grad])
                counts["done"] += 1
            except RuntimeError:
                counts["refused"] += 1

    workers = [threading.Thread(target=step_often) for _ in range(2)]
    for worker in workers:
        worker.start()
    while counts["refused"] == 0 or counts["done"] < 3:
        assert all(worker.is_alive() for worker in workers)
        stop.wait(0.01)
    stop.set()
    for worker in workers:
        worker.join()
    done = opt.state["0"]["step"]
    assert np.all(param == -done)


def test_state_is_not_read_in_the_middle_of_a_step() -> None:
    param, grad = np.zeros(8_000_000, np.float32), np.ones(8_000_000, np.float32)
    opt = fo.SGD([param], lr=1.0, momentum=0.5)

    refused = threading.Event()
    steps = 0

    def step_often() -> None:
        nonlocal steps
        while not refused.is_set() and steps < 10_000:  # ends in every case
            opt.step([grad])
            steps += 1

    worker = threading.Thread(target=step_often)
    worker.start()
    while worker.is_alive():
        try:
            opt.state_dict()
        except RuntimeError:
            refused.set()
    assert refused.is_set()
    assert opt.state["0"]["step"] == steps


def test_targets_that_change_meanwhile_do_not_matter() -> None:
    logits, targets = np.zeros((20_000, 100), np.float32), np.zeros(20_000, np.int64)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            targets[-1] = 10**11
            targets[-1] = 0

    worker = threading.Thread(target=disturb)
    worker.start()
    for _ in range(50):
        try:
            fo.CrossEntropyLoss().value_and_grad(logits, targets, out=logits)
        except IndexError:
            logits[...] = 0
    stop.set()
    worker.join()


def test_interrupts_never_leave_half_a_step() -> None:
    out = check(
        """
import signal, numpy as np, fastopt as fo
p, g = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
opt = fo.SGD([p], lr=1.0)
signal.signal(signal.SIGALRM, signal.default_int_handler)
hits = 0
while hits < 20:
    signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0007 * hits)
    try:
        while True:
            opt.step([g])
    except KeyboardInterrupt:
        hits += 1
    assert np.all(p == p[0]) and opt.state["0"]["step"] == -p[0]
print(hits)
"""
    )
    assert out == "20\n"


# -- thread counts -------------------------------------------------------------------------------


def test_environment_sets_the_number_of_threads() -> None:
    ask = "import fastopt; print(fastopt.get_num_threads())"
    limit = min(_core.affinity_cpus(), _core.cgroup_cpus() or 10**6)
    for environment, wanted in (
        ({"FASTOPT_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, 1),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "2,4"}, 2),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "many"}, limit),
        ({"FASTOPT_NUM_THREADS": "1000", "OMP_NUM_THREADS": "1"}, limit),
    ):
        assert int(check(ask, **environment)) == min(wanted, limit)
    for bad in ("none", "0", "-1", "1.5", "2x"):
        result = run(ask, FASTOPT_NUM_THREADS=bad)
        assert result.returncode == 1
        assert f"FASTOPT_NUM_THREADS must be a positive integer, not '{bad}'" in result.stderr


def test_environment_chooses_the_instruction_set() -> None:
    ask = "import fastopt; print(fastopt.active_isa())"
    for name in fo.available_isas():
        assert check(ask, FASTOPT_ISA=name) == f"{name}\n"
    assert check(ask, FASTOPT_ISA="") == f"{fo.available_isas()[-1]}\n"
    result = run(ask, FASTOPT_ISA="mmx")
    assert result.returncode == 1
    assert "'mmx' is not available" in result.stderr
    assert all(name in result.stderr for name in fo.available_isas())


def test_set_num_threads_stays_within_the_machine() -> None:
    fo.set_num_threads(1)
    assert fo.get_num_threads() == 1
    fo.set_num_threads(10**6)
    assert fo.get_num_threads() <= _core.affinity_cpus()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_affinity_is_respected() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "import fastopt; print(fastopt.get_num_threads())"
    )
    assert check(script, FASTOPT_NUM_THREADS="", OMP_NUM_THREADS="") == "1\n"


CGROUPS: list[tuple[str, dict[str, str], int]] = [
    ("none", {}, 0),
    ("v2", {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2),
    ("v2 max", {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 0),
    (
        "v2, parent tighter",
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3,
    ),
    ("v2 root", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    (
        "v1",
        {
            "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/x/y\n",
            "sys/fs/cgroup/cpu,cpuacct/x/y/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/y/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    (
        "v1 without quota",
        {
            "proc/self/cgroup": "3:cpu:/\n2:cpuset:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        0,
    ),
    ("nonsense", {"proc/self/cgroup": "hello\n", "sys/fs/cgroup/cpu.max": "x y\n"}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("files", "cpus"), [pytest.param(*r[1:], id=r[0]) for r in CGROUPS])
def test_cgroup_quota(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _core.cgroup_cpus(str(tmp_path)) == cpus


def test_nobody_sees_a_result_before_it_is_whole() -> None:
    x, y = np.zeros((3000, 50)), np.zeros(3000, int)
    seen: list[Any] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for item in gc.get_objects():
                if type(item) is fo.CrossEntropyStats and None in item[3:]:
                    seen.append(item)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            loss, *_, correct, total = fo.CrossEntropyLoss().value_and_stats(x, y)
            assert loss == pytest.approx(np.log(50))
            assert correct == total == 3000
    finally:
        over.set()
        watcher.join()
    assert not seen
    result = fo.CrossEntropyLoss().value_and_stats(x, y)
    assert all(map(gc.is_tracked, (result, fo.MSELoss().value_and_grad(x, x))))


# -- floating-point control ----------------------------------------------------------------------

FLUSH_TO_ZERO_AND_DENORMALS = 0x8040
STICKY = 0x3F


SMALL = np.full(200_000, 1e-39, np.float32)  # denormal, like the products with it

LOGITS = np.random.default_rng(0).standard_normal((3000, 7)).astype(np.float32)
TARGETS = np.arange(3000) % 7
WEIGHT = np.linspace(1e-45, 1, 7)  # float64, with one that is denormal in float32


def denormal_step() -> list[FloatArray]:
    p, g = SMALL.copy(), SMALL[::-1]
    opt = fo.SGD([p], lr=0.1, momentum=0.7, dampening=0.1)
    other = fo.AdamW([p], lr=0.1 + 2**-50, betas=(0.7, 0.9))
    for _ in range(2):
        opt.step([g])
        other.step([g])
    results = [p, opt.state["0"]["momentum_buffer"], other.state["0"]["exp_avg"]]
    for reduction in ("mean", "sum", "none"):
        for weight in (None, WEIGHT):
            ce = fo.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=0.1)
            results += [np.asarray(part) for part in ce.value_and_grad(LOGITS, TARGETS)]
    return results


def test_results_do_not_depend_on_flush_to_zero(mxcsr: Any, threads: int) -> None:
    read, write = mxcsr
    expected = denormal_step()
    assert np.all(expected[0] != 0)
    mode = read() & ~STICKY | FLUSH_TO_ZERO_AND_DENORMALS | 0x6000  # and rounds towards zero
    write(mode)
    got = denormal_step()
    after = read()
    write(0x1F80)
    assert after & ~STICKY == mode
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


def test_the_hosts_floating_point_control_is_left_alone(mxcsr: Any, threads: int) -> None:
    read, _ = mxcsr
    before = read()
    denormal_step()
    p = np.ones(200_000, np.float32)
    fo.Adam([p], eps=0.0, betas=(0, 0)).step([np.zeros(200_000, np.float32)])  # 0/0
    fo.CrossEntropyLoss().value_and_grad(
        np.full((2000, 10), np.inf, np.float32), np.zeros(2000, int)
    )
    assert read() & ~STICKY == before & ~STICKY


def test_import_does_not_set_flush_to_zero() -> None:
    check("import fastopt, numpy as np; assert np.float32(1e-39) * np.float32(0.5) != 0")


# -- imports -------------------------------------------------------------------------------------


def test_import_needs_numpy_alone() -> None:
    out = check(
        "import sys, numpy; before = set(sys.modules); import fastopt;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    assert out in ("['fastopt']\n", "['fastopt', 'numpy']\n")


def test_import_does_less_than_numpys() -> None:
    """Counted in calls of Python functions, which do not depend on other processes."""
    out = check("""
import sys
def calls(name):
    count = 0
    def add(frame, event, argument):
        nonlocal count
        count += event == "call"
    sys.setprofile(add)
    __import__(name)
    sys.setprofile(None)
    return count
print(calls("numpy"), calls("fastopt"))
""")
    numpys, ours = map(int, out.split())
    assert 0 < ours < numpys


# -- memory --------------------------------------------------------------------------------------


class GuardedPages:
    """Arrays that end or begin at a page that must not be read or written."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def array(self, values: FloatArray, *, at_end: bool) -> FloatArray:
        page = mmap.PAGESIZE
        size = -(-max(values.nbytes, 1) // page) * page
        memory = mmap.mmap(-1, size + 2 * page)
        self._maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (start, start + page + size):
            assert self._libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0
        offset = page + (size - values.nbytes if at_end else 0)
        array: FloatArray = np.frombuffer(memory, values.dtype, values.size, offset)
        array[...] = values
        return array


@pytest.mark.skipif(sys.platform != "linux", reason="uses mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in FUNCTIONS], ids=str)
def test_nothing_outside_the_arrays_is_touched(case: Case, dtype: Any, isa: str) -> None:
    function, names = FUNCTIONS[case.name]
    pages = GuardedPages()
    sizes = (1, 3, 15, 16, 17, 63, 64, 65, 1023, CHUNK + 1)
    for size, at_end in itertools.product(sizes, (False, True)):
        values = np.linspace(-1, 1, size).astype(dtype)
        param = pages.array(values, at_end=at_end)
        grad = pages.array(values * 2, at_end=at_end)
        states = {name: pages.array(values * 0, at_end=at_end) for name in names}
        expected = values.copy()
        reference = case.reference({"p": expected})
        for step in (1, 2):
            extra = {} if case.name == "RMSprop" else {"step": step}
            function(param, grad, **states, **extra, **case.options)
            reference.step({"p": values * 2})
        assert same_bits(np.array(param), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="uses mprotect")
def test_cross_entropy_stays_inside_its_arrays(isa: str) -> None:
    pages = GuardedPages()
    shapes = ((1, 1), (3, 5), (7, 64), (5, 67), (2, 1025))
    for (rows, classes), at_end in itertools.product(shapes, (False, True)):
        values = np.random.default_rng(0).standard_normal(rows * classes).astype(np.float32)
        targets = np.arange(rows) % classes
        logits = pages.array(values, at_end=at_end).reshape(rows, classes)
        out = pages.array(values, at_end=at_end).reshape(rows, classes)
        for smoothing in (0.0, 0.1):
            ce = fo.CrossEntropyLoss(label_smoothing=smoothing)
            loss, grad = ce.value_and_grad(logits, targets, out=out)
            assert np.isfinite(loss)
            assert np.all(np.isfinite(grad))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    size = 2**31 + 5
    param = np.zeros(size, np.float32)
    opt = fo.SGD([param], lr=1.0)
    opt.step([np.broadcast_to(np.float32(1), size)])
    assert param[0] == param[-1] == param[2**31] == param[2**31 - 1] == -1
    opt.step([np.frombuffer(mmap.mmap(-1, 4 * size), np.float32)])  # untouched: zeros, no memory
    assert param[0] == param[-1] == -1
    del param, opt
    rows, classes = 3, (2**31 + 9) // 3
    logits = np.zeros((rows, classes), np.float32)
    loss, grad = fo.CrossEntropyLoss().value_and_grad(
        logits, np.array([0, classes - 1, classes // 2]), out=logits
    )
    assert loss == pytest.approx(np.log(classes), rel=1e-6)
    assert grad[2, -1] == pytest.approx(1 / classes / 3, rel=1e-5)
    assert grad[1, classes - 1] == pytest.approx(-1 / 3, rel=1e-6)


@SEES_PEAKS
def test_the_call_itself_makes_no_copies() -> None:
    """An update in place needs no memory of the size of the arrays, for any strides."""
    check(
        PEAK
        + """
import numpy as np, fastopt as fo
f = fo.functional
def ones(*shape):
    return np.ones(shape, np.float32)
param, grad = ones(1000, 2000), ones(1000, 2000)  # 8 MB
average, sums = fo.WeightEMA([param]), fo.GradAccumulator([param])
opt = fo.AdamW([param])
logits, x, y = (ones(1000, 2000) for _ in range(3))
targets = np.zeros(1000, np.int64)
calls = {
    "a step": lambda: opt.step([grad]),
    "clipped": lambda: opt.step([grad], max_norm=1.0, skip_nonfinite=True, zero_grads=True),
    "strided": lambda: opt.step([np.broadcast_to(np.float32(0.5), param.shape)], max_norm=1.0),
    "transposed": lambda: opt.step([grad.reshape(2000, 1000).T]),
    "norm": lambda: fo.clip_grad_norm_([grad], 1.0),
    "averages": lambda: average.update(),
    "sums": lambda: sums.add([grad]),
    "cross-entropy": lambda: fo.CrossEntropyLoss().value_and_grad(logits, targets, out=logits),
    "its value": lambda: fo.CrossEntropyLoss()(logits, targets),
    "NLL": lambda: fo.NLLLoss().value_and_grad(logits, targets, out=logits),
    "pointwise": lambda: fo.MSELoss().value_and_grad(x, y, out=x),
    "softmax": lambda: f.softmax(x, out=x),
    "relu": lambda: f.relu(x, out=x),
}
assert peak(lambda: ones(2_000_000)) > 7_500_000  # it sees an array of 8 MB
for name, call in calls.items():
    assert peak(call) < 1_000_000, name
""",
        **PEAK_NEEDS,
    )
