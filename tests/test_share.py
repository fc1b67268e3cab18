"""How the cores and GPUs of one machine are divided among worker processes."""

import pytest
import torch

from hessrmt.backend import host
from hessrmt.errors import ConfigError


@pytest.mark.parametrize(
    ("workers", "cores", "limit", "threads"),
    [(1, 8, "", 8), (3, 8, "", 2), (8, 8, "", 1), (9, 8, "", 1), (2, 8, "3", 3), (2, 8, "9", 4)],
)
def test_cores_are_divided(monkeypatch, workers, cores, limit, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    found = host.environments(workers, cores, "cpu")
    assert found == [{**dict.fromkeys(host.THREADS, str(threads)), "MKL_CBWR": "AUTO"}] * workers


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-3a,7")
    for device in ("auto", "cuda"):
        found = host.environments(2, 8, device)
        assert [item["CUDA_VISIBLE_DEVICES"] for item in found] == ["5", "GPU-3a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    found = host.environments(2, 8, "auto")
    assert [item["CUDA_VISIBLE_DEVICES"] for item in found] == ["0", "1"]
    for workers, device in ((4, "cpu"), (1, "cuda:1")):
        assert "CUDA_VISIBLE_DEVICES" not in host.environments(workers, 8, device)[0]
    with pytest.raises(ConfigError, match="this machine has 2"):
        host.environments(3, 8, "cuda")
    with pytest.raises(ConfigError, match="one worker a GPU"):
        host.environments(2, 8, "cuda:1")
