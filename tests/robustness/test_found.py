"""What the programs of this folder have found, each in the smallest form."""

import errno
import os

import h5py
import pytest
import torch
from store_samples import BATCHES, create, resume, spectrum

from hessrmt.config import SimulateConfig, TrainConfig, load_settings
from hessrmt.errors import ConfigError, ProblemError, is_out_of_memory
from hessrmt.problems.plugins import explained

NET = "--model logistic --data tiny.npz --device cpu"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def test_a_row_without_its_flag_gets_it_when_the_file_is_continued(full):
    with h5py.File(full) as file:
        place = file["done"].id.get_offset() + 1
    whole = full.read_bytes()
    full.write_bytes(whole[:place] + b"\0" + whole[place + 1 :])
    with resume(full) as writer:
        assert writer.done.tolist() == [True] * BATCHES
    assert full.read_bytes() == whole


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.toml"])
@pytest.mark.parametrize("option", ["--config", "--data", "--checkpoint"])
def test_devices_and_pipes_are_not_read(tmp_path, tiny_npz, refused, option, name):
    os.mkfifo(tmp_path / "pipe.toml")
    refused(["spectrum", *NET.split(), option, name], [name, "is a device or a pipe"])


@pytest.mark.parametrize("option", ["--model", "--loss"])
def test_a_pipe_is_no_file_of_code(tmp_path, tiny_npz, refused, option):
    os.mkfifo(tmp_path / "net.py")
    words = ["spectrum", *NET.split(), option, "net.py:net"]
    refused(words, ["net.py is a device or a pipe"])


@pytest.mark.skipif(not os.path.exists("/proc/kmsg"), reason="a file without an end")
@pytest.mark.parametrize("words", ["info", "capacity", "report", "spectrum --config"])
def test_files_that_the_system_makes_up_are_not_read(tmp_path, cli, words):
    (tmp_path / "link").symlink_to("/proc/kmsg")
    done = cli(*words.split(), "link")
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert "link is a device or a pipe" in done.stderr


@pytest.mark.parametrize("command", ["capacity", "levels", "info", "report", "plot"])
def test_a_pipe_is_no_file_of_results(tmp_path, refused, command):
    os.mkfifo(tmp_path / "pipe.h5")
    refused([command, "pipe.h5"], ["pipe.h5 is a device or a pipe"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("batch = true", "batch: should not be true or false"),
        ("lr = false", "lr: should not be true or false"),
        (f"batch = 1{'0' * 20}", "batch: should be at most 1,000,000,000,000"),
    ],
)
def test_settings_that_are_no_numbers_or_endless(tmp_path, line, said):
    (tmp_path / "a.toml").write_text(line)
    with pytest.raises(ConfigError, match=said):
        load_settings(TrainConfig, tmp_path / "a.toml")


def test_seeds_are_as_large_as_ever():
    assert SimulateConfig(seed=2**64 - 1).seed == 2**64 - 1


def test_a_row_of_a_table_with_too_many_cells(tmp_path, tiny_npz, refused):
    (tmp_path / "a.csv").write_text("path,top1\ntiny.npz,0.5,0.7\n")
    refused(["capacity", "tiny.npz", "--against", "a.csv"], ["row 1", "more cells"])


def test_options_that_say_nothing(tmp_path, tiny_npz, refused):
    refused(["capacity", "tiny.npz", "--columns", "top1"], ["columns", "--against"])
    refused(["capacity", "tiny.npz", "--format", "bmp3"], ["no picture format 'bmp3'"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(CPU),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("std::bad_alloc"),
        SystemError("error return without exception set"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=repr,
)
def test_what_says_that_memory_ran_out_is_no_fault_of_the_network(error):
    assert is_out_of_memory(error)
    with pytest.raises(type(error)), explained(Exception, "the network failed"):
        raise error


def test_other_errors_are_what_they_were():
    for error in (RuntimeError("shapes differ"), ValueError("out of memory"), OSError(2, "gone")):
        assert not is_out_of_memory(error)
    with (
        pytest.raises(ProblemError, match="the network failed"),
        explained(Exception, "the network failed"),
    ):
        raise RuntimeError("shapes differ")


def test_memory_that_runs_out_in_a_run_is_one_sentence(tmp_path, tiny_npz, cli, monkeypatch):
    def no_room(*_, **__):
        raise RuntimeError(CPU)

    words = ["spectrum", *NET.split(), "--batch", 10, "--batches", 2, "--out", "a.h5"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigvalsh", no_room)
        done = cli(*words)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "out of memory; take a smaller --batch" in done.stderr
    assert "alloc_cpu" not in done.stderr


def test_a_disk_that_is_full_before_the_first_row_is_a_run_that_failed(path, monkeypatch, cli):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        done = cli("simulate", "--samples", 1, "--dimension", 6, "--out", path)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert not path.exists()
    with create(path) as writer:
        writer.write(0, spectrum(0))
