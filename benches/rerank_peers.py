"""The peers of the cross-encoder: sentence-transformers, also over ONNX Runtime and OpenVINO.

sentence-transformers reaches its ONNX and OpenVINO backends through optimum, whose releases refuse
transformers 5. So the model is exported here, and run by the same runtimes below the same
``predict``, which tokenises, sorts, pads and batches as ever. What optimum does between the two is
left out, which can only favour the peer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import THREADS, scaled, timed
from numpy.typing import NDArray

Pairs = Sequence[tuple[str, str]]
Features = dict[str, NDArray[np.int64]]
Runtime = Callable[[Features], NDArray[np.float32]]

BATCHES = scaled(smoke=(4, 8), default=(8, 16, 32, 64, 100), full=(4, 8, 16, 24, 32, 50, 64, 100))
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NEEDED = ("onnx", "onnxruntime", "openvino", "nncf")


def sentence_transformer(folder: Path, *, bf16: bool = False) -> Any:
    """sentence-transformers' CrossEncoder over the weights in ``folder``."""
    from sentence_transformers import CrossEncoder

    peer = CrossEncoder(str(folder), num_labels=1, max_length=512, device="cpu")
    return peer.bfloat16() if bf16 else peer


def predict(peer: Any, pairs: Pairs, batch: int) -> NDArray[np.float32]:
    """(n,) scores."""
    scores: NDArray[np.float32] = peer.predict(
        list(pairs), batch_size=batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    return scores


def fastest(call: Callable[[int], Any], sizes: Sequence[int] = BATCHES) -> tuple[int, float]:
    """The size with which ``call(size)`` takes least, each tried twice after a warm-up; seconds."""
    call(sizes[0])
    seconds = {}
    for size in sizes:
        side = timed(partial(call, size))
        seconds[size] = min(side()[0], side()[0])
    best = min(seconds, key=lambda size: seconds[size])
    return best, seconds[best]


class Below(torch.nn.Module):
    """What stands in the model's place below ``predict``: a runtime with the model's own inputs."""

    def __init__(self, runtime: Runtime, config: Any) -> None:
        super().__init__()
        self.config = config
        self._runtime = runtime

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """``{"logits": (n, 1)}``."""
        tensors = (input_ids, attention_mask, token_type_ids)
        features = {name: x.numpy() for name, x in zip(INPUTS, tensors, strict=True)}
        return {"logits": torch.from_numpy(self._runtime(features))}


def backends(source: Path, folder: Path, pairs: Pairs) -> Mapping[str, Any]:
    """By name, sentence-transformers' CrossEncoder over each runtime and precision.

    Args:
        source: the weights.
        folder: where the exported graphs go.
        pairs: what the 8-bit graph of OpenVINO is calibrated on: the very pairs to score.
    """
    for name in NEEDED:
        with _quiet():
            pytest.importorskip(name, reason="pip install -r benches/requirements.txt")
    # Written out operation by operation, as the fusions of both runtimes expect it.
    plain = sentence_transformer(source)
    model = plain[0].model
    model.set_attn_implementation("eager")
    parts = [pairs[start : start + 8] for start in range(0, min(len(pairs), 64), 8)]
    samples = [_features(plain, part) for part in parts]
    with _quiet():
        graph = _exported(model, samples[0], folder / "model.onnx")
        runtimes = {**_onnx(graph, model.config), **_openvino(graph, samples)}
    found = {}
    for name, runtime in runtimes.items():
        peer = sentence_transformer(source)
        peer[0].model = Below(runtime, model.config)
        found[name] = peer
    return found


def _features(peer: Any, pairs: Pairs) -> Features:
    features = peer.preprocess(list(pairs))
    return {name: features[name].numpy() for name in INPUTS}


def _exported(model: Any, sample: Features, path: Path) -> Path:
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(INPUTS, inputs, strict=True))).logits
            return logits

    # The exporter puts back what it found: without eval() the model would drop out from here on.
    torch.onnx.export(
        Logits().eval(),
        tuple(torch.from_numpy(sample[name]) for name in INPUTS),
        path,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={name: {0: "pairs", 1: "tokens"} for name in INPUTS},
        opset_version=17,
        dynamo=False,
    )
    return path


def _onnx(graph: Path, config: Any) -> dict[str, Runtime]:
    """As it comes, with whole layers fused (sentence-transformers' O2), and with 8-bit products."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    fused, small = graph.with_suffix(".fused.onnx"), graph.with_suffix(".int8.onnx")
    optimizer.optimize_model(
        str(graph),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=1,
    ).save_model_to_file(str(fused))
    # optimum's "avx512_vnni": signed weights a column, inputs measured as they come.
    quantize_dynamic(str(graph), str(small), per_channel=True, weight_type=QuantType.QInt8)
    return {
        "ONNX fp32": _session(graph),
        "ONNX fp32, fused": _session(fused),
        "ONNX int8": _session(small),
    }


def _session(graph: Path) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    # It may spin while it runs, which is its best; not afterwards, when another is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda features: session.run(None, features)[0]


def _openvino(graph: Path, samples: Sequence[Features]) -> dict[str, Runtime]:
    """In fp32, in what it takes unasked on this CPU (bf16 where it can), and in 8 bits."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core, model = openvino.Core(), openvino.convert_model(graph)
    # Fewer samples than the default of 300 only where there are no more.
    small = nncf.quantize(
        model,
        nncf.Dataset(list(samples)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )

    def compiled(what: Any, **settings: str) -> Runtime:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(THREADS),
            **settings,
        }
        request = core.compile_model(what, "CPU", settings).create_infer_request()
        return lambda features: np.array(request.infer(features, share_inputs=True)[0])

    return {
        "OpenVINO fp32": compiled(model, INFERENCE_PRECISION_HINT="f32"),
        "OpenVINO as it comes": compiled(model),
        "OpenVINO int8": compiled(small),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the exporters are about themselves, and pytest would make errors of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
