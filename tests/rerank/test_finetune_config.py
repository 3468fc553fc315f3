import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import hybridrec as hr
from hybridrec.checks import InputError, InputTypeError
from hybridrec.rerank.config import CrossEncoderConfig
from hybridrec.state import config_from_json, config_to_json


def test_it_is_json_alone_and_inside_the_cross_encoder():
    config = hr.FineTuning(epochs=3, report_to=["tensorboard"], checkpoints="runs", patience=2)
    assert config.report_to == ("tensorboard",)
    again = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(hr.FineTuning, again) == config
    outer = CrossEncoderConfig(finetuning=config)
    again = json.loads(json.dumps(config_to_json(outer)))
    assert config_from_json(CrossEncoderConfig, again) == outer
    assert hash(outer) == hash(config_from_json(CrossEncoderConfig, again))
    with pytest.raises(FrozenInstanceError):
        config.epochs = 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"negatives": 0}, "negatives is 0"),
        ({"recall_share": 1.5}, "recall_share is 1.5"),
        ({"tune": "some"}, "tune is 'some'"),
        ({"tune": "last:0"}, "tune is 'last:0'"),
        ({"tune": 2}, "tune is 2"),
        ({"rank": 0}, "rank is 0"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"drop": 1}, "drop is 1"),
        ({"crop": -0.1}, "crop is -0.1"),
        ({"adversarial": -1}, "adversarial is -1"),
        ({"adversarial": 1, "tune": "lora"}, "wanted adversarial=0 or tune='full'"),
        ({"average": "swa"}, "average is 'swa'"),
        ({"checkpoints": 3}, "checkpoints is 3"),
        ({"report_to": [1]}, r"report_to is \[1\]"),
        ({"report_to": "tensorboard"}, "report_to names 'tensorboard'.*wanted checkpoints="),
        ({"rate": 1}, "FineTuning has no setting 'rate'"),
    ],
)
def test_nonsense_is_refused_when_made(settings, words):
    with pytest.raises((InputError, InputTypeError), match=words):
        config_from_json(hr.FineTuning, settings)


def test_what_reads_like_it_is_taken():
    config = hr.FineTuning(report_to="wandb", checkpoints=Path("runs"), tune="last:12")
    assert config.report_to == ("wandb",)
    assert config.checkpoints == "runs"
    assert config.last_layers == 12
    assert hr.FineTuning().last_layers is None


def test_a_model_saved_with_flat_settings_still_loads(tiny_model, tmp_path):
    finetuning = hr.FineTuning(epochs=5, negatives=3, recall_share=0.5)
    model = hr.CrossEncoder(tiny_model, device="cpu", finetuning=finetuning).prepare(["red cat"])
    model.save_files(tmp_path)
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    config = state["settings"]["config"]
    nested = config.pop("finetuning")
    flat = ("epochs", "batch_size", "negatives", "learning_rate", "warmup", "recall_share")
    config |= {name: nested[name] for name in flat}
    path.write_text(json.dumps(state))
    assert hr.CrossEncoder.load_files(tmp_path).config == model.config
