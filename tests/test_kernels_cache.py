"""Where compiled kernels are kept: a package and a home that are read-only stop no run."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

np = pytest.importorskip("numpy")
numba = pytest.importorskip("numba")

from numba.core import caching  # noqa: E402

from zopeft.kernels.numba_cache import Keeping  # noqa: E402
from zopeft.kernels.numba_kernels import _spreading  # noqa: E402

SIGNATURE = "f8[::1]"


def add_one(begin, end, x):
    for at in range(begin, end):
        x[at] += 1.0


def sums(kernel, number):
    """The number plus one, found by the kernel in two parts."""
    x = np.full(3, number)
    kernel(np.array([0, 1, 3]), 0, 1, x)
    assert x[0] == x[1] == x[2]
    return x[0]


def kept_in(folder):
    return sorted(path.suffix for path in folder.rglob("*.nb?"))


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """numba finds a folder where it has been told one, and there alone."""
    cache = caching.FunctionCache._impl_class
    told = [one for one in cache._locator_classes if "UserProvided" in one.__name__]
    assert len(told) == 1
    monkeypatch.setattr(cache, "_locator_classes", told)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_they_are_kept_among_the_temporary_files_which_is_said_once(read_only, caplog):
    keeping = Keeping(_spreading)
    for _ in range(2):
        assert sums(keeping.compiled(SIGNATURE)(add_one), 2.0) == 3.0
    assert kept_in(read_only) == [".nbc", ".nbi"]
    (own,) = read_only.iterdir()
    assert own.stat().st_mode & 0o777 == 0o700
    (line,) = caplog.messages
    assert "numba cannot keep compiled kernels (cannot cache function" in line
    assert line.endswith(f"they are kept in {own}")
    assert numba.config.CACHE_DIR == ""


@pytest.mark.parametrize("why", ["open to others", "a link", "nowhere", "a full disk"])
def test_they_are_compiled_anew_where_nothing_can_be_kept(why, read_only, caplog, monkeypatch):
    own = read_only / f"zopeft-{os.getuid()}"
    if why == "open to others":
        # What others can put there would be run.
        own.mkdir()
        own.chmod(0o770)
    elif why == "a link":
        (read_only / "other").mkdir(mode=0o700)
        own.symlink_to(read_only / "other")
    elif why == "a full disk":

        def save(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(caching.FunctionCache, "save_overload", save)
    else:
        monkeypatch.setattr("tempfile.tempdir", str(read_only / "missing"))
    keeping = Keeping(_spreading)
    for _ in range(2):
        assert sums(keeping.compiled(SIGNATURE)(add_one), 2.0) == 3.0
    assert kept_in(read_only) == []
    assert "kept nowhere: every run compiles them anew" in caplog.messages[-1]
    assert len(caplog.messages) == (2 if why == "a full disk" else 1)


def test_a_kernel_is_compiled_when_it_is_first_called_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    keeping = Keeping(_spreading)
    kernel = keeping.compiled(SIGNATURE)(add_one)
    assert kept_in(tmp_path) == [] and keeping.kernels == [kernel]
    made, compiled = [], kernel._compile
    monkeypatch.setattr(kernel, "_compile", lambda one: made.append(one) or compiled(one))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(partial(sums, kernel), [1.0, 2.0, 3.0, 4.0])) == [
            2.0,
            3.0,
            4.0,
            5.0,
        ]
    assert made == [add_one]
    assert kept_in(tmp_path) == [".nbc", ".nbi"]


def test_the_kernels_themselves_are_kept_so():
    from zopeft.kernels import numba_kernels

    keeping = numba_kernels._kernel.__self__
    assert isinstance(keeping, Keeping)
    assert {numba_kernels.shift, numba_kernels.update} < set(keeping.kernels)
