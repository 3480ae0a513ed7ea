"""What every test of the command line needs: checkpoints made once, and the command itself, in this process or not."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from checkpoints import write_llama
from command import Forks, Result, forking
from small_disks import SmallDisk, mount

os.environ.pop("HF_HUB_OFFLINE", None)  # the tests have a hub of their own
settings.register_profile("default", deadline=None)  # a busy machine is no fault
settings.load_profile("default")

DEVICE = os.environ.get("MLXPORT_TEST_DEVICE", "")


class NamedAtOnce:
    """Names a failure when it happens: a run that is ended before its summary would name none."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.write_line(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """The device that ``MLXPORT_TEST_DEVICE`` names, and one thread a worker: workers share the cores already.

    What is written here is noted in a cache directory of the tests' own, not in the user's.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
        made = tempfile.TemporaryDirectory(prefix="mlxport-tests-")
        config.add_cleanup(made.cleanup)
        os.environ["MLXPORT_CACHE"] = made.name
        config.pluginmanager.register(NamedAtOnce(config))
    if getattr(config.option, "numprocesses", None):  # before the workers start, which inherit it
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
    if DEVICE not in ("", "cpu", "gpu"):
        raise pytest.UsageError(f"MLXPORT_TEST_DEVICE={DEVICE}: expected cpu or gpu")
    if DEVICE:
        import mlx.core as mx

        mx.set_default_device(getattr(mx, DEVICE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What only MLX's CPU backend can do is skipped on another."""
    import mlx.core as mx

    if mx.default_device() == mx.cpu:
        return
    for item in items:
        if item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason="about MLX's CPU backend; MLXPORT_TEST_DEVICE=cpu runs it"))


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What modules and caches hold by now is not gone through again, file after file.

    A verification collects garbage before it returns, which took 0.5 s and more among all that a worker has imported.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def mlxport(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line, in this process."""
    from mlxport.cli.app import main

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def _llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("checkpoints") / "tiny llama")


@pytest.fixture
def source(_llama: Path, tmp_path: Path) -> Path:
    """A llama in three shards with an index, to be broken at will."""
    return Path(shutil.copytree(_llama, tmp_path / "source"))


@pytest.fixture(scope="session")
def converted(_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What becomes of it; not to be written to."""
    from mlxport import convert

    destination = tmp_path_factory.mktemp("converted") / "out"
    convert(_llama, destination, verify="none")
    return destination


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., SmallDisk]]:
    """Mounts a tmpfs of so many bytes: a disk that is really full when it is full, or one that cannot be written."""
    mounted: list[SmallDisk] = []

    def make(size: int, **options: bool) -> SmallDisk:
        mounted.append(mount(tmp_path / f"disk{len(mounted)}", size, **options))
        return mounted[-1]

    yield make
    for disk in mounted:
        disk.close()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Runs of the command line that are killed at a chosen moment."""
    with forking() as forks:
        yield forks


@pytest.fixture(scope="session")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose conversion to 50 kB shards (`--max-shard-size 50KB`) takes dozens of files."""
    return write_llama(tmp_path_factory.mktemp("checkpoints") / "deep", layers=12, shards=2)
