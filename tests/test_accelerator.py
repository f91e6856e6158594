"""`tests/benchmarks/accelerator.py`: its arithmetic, its table, and (slow) all of it on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import environment

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import accelerator
    finally:
        sys.path.remove(str(BENCHMARKS))
    return accelerator


@pytest.fixture(scope="module")
def data(script):
    return sys.modules["accelerator_data"]


def test_lengths_are_those_of_squad(data):
    lengths = data.lengths_of(4000)
    assert lengths.mean() == pytest.approx(172, abs=1)
    assert np.percentile(lengths, [50, 75, 90, 95]).tolist() == [160, 201, 255, 299]
    assert lengths.max() <= data.WIDTH
    arrays = data.arrays_of("tiny", 50)
    assert (arrays["attention_mask"].sum(1) == data.lengths_of(50)).all()
    assert (arrays["end_positions"] < arrays["attention_mask"].sum(1)).all()


@pytest.mark.parametrize(("model", "giga"), [("base", 70.7), ("large", 246.4)])
def test_flops_are_those_of_the_encoder(data, model, giga):
    """2 for each weight and token, as in the papers; and attention grows as the square."""
    config = data.config_of(model)
    assert data.forward_flops(config, [384]) / 1e9 == pytest.approx(giga, abs=0.05)
    one, two, both = (data.forward_flops(config, n) for n in ([100], [200], [100, 200]))
    assert both == pytest.approx((one + two) / 2)
    assert two > 2 * one
    assert data.model_flops(config, [384], "training") == 3 * data.forward_flops(config, [384])


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", None),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_device(data, kind, peak):
    assert data.peak_of(kind) == peak


def test_the_table_has_a_row_for_all_that_was_measured_and_all_that_was_not(script, data):
    job = data.Job("base", script.OWN[0], 8.0, None, None, None, "cuda")
    results = script.Results()
    results.add(job, {"kind": "device", "device": "NVIDIA H200", "count": 1, "jax": "0.10.2"})
    further = {"windows_at_once": 143, "peak_bytes": 3 << 30, "kind": "row"}
    found = data.row(job, "training", 7776, 2.0, ("NVIDIA H200", 1), **further)
    results.add(job, {**found, "busy": 0.98, "longest_gap": 0.002})
    results.add(job, {"kind": "skipped", "reason": "8 minutes were over"})
    peer = job._replace(side=script.HF)
    found = data.row(peer, "training", 2592, 1.0, ("NVIDIA H200", 1), **further)
    results.add(peer, found)
    results.skip(job._replace(side=script.FLASH), "flash_attn is not installed")
    text = results.text()
    assert "NVIDIA H200, jax 0.10.2" in text
    own = "| base | training | qa_flax, packed | 143 | 3,888 | 1.50x | 36.0% | 98.0% | 2.0 ms |"
    assert f"{own} 3 GiB |" in text
    assert "| base | evaluation | qa_flax, packed | - | not measured: 8 minutes were over |" in text
    assert text.count("not measured: flash_attn is not installed") == 2
    assert not results.has_failed
    results.add(peer, {"kind": "failed", "reason": "out of memory"})
    assert results.has_failed
    assert "| base | evaluation | Hugging Face, grouped | - | failed: out of memory |" in (
        results.text()
    )


def test_peers_that_cannot_run_say_why(script, data):
    hf = data.Job("base", script.HF, 8.0, None, None, None, "cuda")
    assert script.obstacle(hf._replace(side=script.OWN[1]), "cpu") is None
    assert "JAX runs on a TPU" in script.obstacle(hf, "tpu")
    assert "--peer_device" in script.obstacle(hf._replace(peer_device="none"), "gpu")


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--tiny", "--output", str(file)]
    done = subprocess.run(
        [*command, "--minutes", "5"],
        env=environment(cores=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["device"]["backend"] == "cpu"
    (check,) = found["checks"]
    assert check["packed"] <= 0.1 * check["mixed"]
    own = [row for row in found["rows"] if row["side"].startswith("qa_flax")]
    assert len(own) == 4
    for row in own:
        assert row["windows_per_second"] > 0
        assert 0 < row["busy"] <= 1
        assert row["peak_bytes"] > 0
        assert row["mfu"] is None
    assert all("reason" in row for row in found["rows"] if row not in own)
    assert done.stdout.count("\n| tiny |") == 8


@pytest.mark.slow
def test_an_attention_that_ignores_segments_is_noticed(data, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accelerator_own as own

    from qa_flax import AutoModelForQuestionAnswering
    from qa_flax.device import programs
    from qa_flax.models import encoder

    config = data.config_of("tiny", initializer_range=own.CHECK_RANGE["tiny"])
    windows = own.windows_of("tiny", 8 * own.CHECKED)
    right = own.packed_differences(AutoModelForQuestionAnswering.from_config(config), windows)
    mask = encoder.make_attention_mask
    monkeypatch.setattr(encoder, "make_attention_mask", lambda attended, *segments: mask(attended))
    programs.clear()
    wrong = own.packed_differences(AutoModelForQuestionAnswering.from_config(config), windows)
    programs.clear()
    assert right["packed"] <= own.TOLERANCE * right["mixed"] < 0.5 * wrong["packed"], (right, wrong)
