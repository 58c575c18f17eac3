"""The precision that a run settles on: what all its devices multiply themselves."""

import contextlib
import json
import os
import re
from unittest import mock

import pytest
import torch
from conftest import without_last_checkpoint

from dist_resnet import worker
from dist_resnet.config import Config, for_device
from dist_resnet.diagnosis import device
from dist_resnet.diagnosis.findings import WARNING, Ill
from dist_resnet.runtime import precision

BF16 = {"amx_bf16": True}  # a processor's answer to torch, whatever this one is
LIMIT = "AVX512_CORE"
NO_BF16 = f"ONEDNN_MAX_CPU_ISA={LIMIT}, which has no bf16"


@contextlib.contextmanager
def processor(limit: str | None):
    """One with AMX, or one that oneDNN takes for something less."""
    variables = {"ONEDNN_MAX_CPU_ISA": limit or "ALL"}
    asked = mock.patch.object(torch.cpu, "get_capabilities", return_value=BF16)
    with asked, mock.patch.dict(os.environ, variables):
        yield


def train(run_dir: str, limits: list[str | None]) -> str:
    """On processors of these kinds, by rank; in a worker."""
    with processor(limits[int(os.environ["RANK"])]):
        return worker.main(run_dir)


def kept_in(run_dir) -> tuple[str, str]:
    """(in its last checkpoint, in summary.json)."""
    directory = run_dir / "checkpoints"
    saved = torch.load(directory / (directory / "LATEST").read_text().strip(), weights_only=True)
    return saved["precision"], json.loads((run_dir / "summary.json").read_text())["precision"]


def test_a_run_takes_what_every_device_multiplies_and_keeps_it(workers, small_path, tmp_path):
    for name, limits, told in (
        ("amx", [None], "bf16 (auto: AMX)"),
        ("limited", [LIMIT], f"fp32 (auto: {NO_BF16})"),
        ("mixed", [None, LIMIT], f"fp32 (auto: rank 1 on {worker.node()}: {NO_BF16})"),
    ):
        run_dir = tmp_path / name
        workers.make(small_path, run_dir)
        size = len(limits)
        assert workers.call(train, str(run_dir), limits, size=size) == ["completed"] * size
        assert f"{size} x cpu, {told}\n" in workers.output
        assert "warning" not in workers.output
        assert kept_in(run_dir) == (told[:4],) * 2
    for name, limits in (("amx", [LIMIT]), ("limited", [None])):
        settled = kept_in(tmp_path / name)[0]
        without_last_checkpoint(tmp_path / name, tmp_path / "resumed" / name)
        workers.call(train, str(tmp_path / "resumed" / name), limits)
        assert "resuming at step" in workers.output
        assert f"1 x cpu, {settled} (as at the run's first start)\n" in workers.output
        assert kept_in(tmp_path / "resumed" / name) == (settled, settled)
        emulated = f"warning: bf16 is emulated on {worker.node()} ({NO_BF16}): a convolution"
        assert (emulated in workers.output) == (settled == "bf16")
        assert ("the run keeps it" in workers.output) == (settled == "bf16")


def test_what_is_asked_for_is_obeyed_and_named_where_it_is_emulated(workers, small_path, tmp_path):
    workers.make(small_path, tmp_path / "run", "--train.precision", "bf16")
    assert workers.call(train, str(tmp_path / "run"), [LIMIT]) == ["completed"]
    assert "1 x cpu, bf16\n" in workers.output and "times as long as in fp32" in workers.output
    assert "--train.precision auto takes" in workers.output
    assert kept_in(tmp_path / "run") == ("bf16", "bf16")


def test_doctor_names_an_emulated_format_with_both_speeds():
    trial, config = device.Trial(torch.device("cpu")), Config()
    asked = for_device.with_precision(config, "bf16")
    speeds = r"a step takes \d+ ms in bf16, \d+ ms in fp32"
    with processor(None):
        found = device.half_precision(trial, config)
        assert re.fullmatch(rf"bf16 \(AMX\): gradients within .*; {speeds}", found)
    with processor(LIMIT):
        found = device.half_precision(trial, config)
        assert re.fullmatch(rf"fp32, since bf16 is emulated \({NO_BF16}\): {speeds}", found)
        with pytest.raises(Ill, match=speeds) as told:
            device.half_precision(trial, asked)
    assert (told.value.remedy, told.value.level) == ("--train.precision auto", WARNING)


@pytest.mark.parametrize("limit, reason", [
    ("avx512_core_amx", "AMX"), ("AVX512_CORE_BF16", "AVX512_BF16"), ("AVX512_CORE_VNNI", None),
    ("AVX2", None), ("ALL", "AMX"),
])  # fmt: skip
def test_what_onednn_is_allowed_counts(limit, reason):
    with (
        processor(limit),
        mock.patch.object(torch.cpu, "_is_avx512_bf16_supported", return_value=True),
    ):
        found = precision.native(torch.device("cpu"))
    assert found.formats == (("bf16",) if reason else ())
    assert not reason or found.reason == reason


@pytest.mark.parametrize("capability, formats", [
    ((6, 1), ()), ((7, 0), ("fp16",)), ((7, 5), ("fp16",)), ((8, 0), ("bf16", "fp16")),
    ((9, 0), ("bf16", "fp16")),
])  # fmt: skip
def test_gpus(capability, formats):
    """torch's answers are a GPU's of that kind: there is none."""
    bf16 = capability >= (8, 0)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=bf16),
    ):
        found = precision.native(torch.device("cuda"))
    assert found == precision.Native(formats, "sm_{}{}".format(*capability))
