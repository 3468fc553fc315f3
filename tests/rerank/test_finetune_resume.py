"""A fine-tuning that was killed goes on where it was and ends where it would have ended."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colours import colour_work, encoder

from hybridrec.rerank import trainer
from hybridrec.rerank.network import Network

SETTINGS = {"epochs": 3, "batch_size": 4, "dropout": 0.2, "drop": 0.3, "patience": 3}
WORK, HELD = (22, 0), (10, 1)  # six steps an epoch

KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from colours import colour_work, encoder
from hybridrec.rerank import trainer
from hybridrec.rerank.network import Network
trainer.CHECKPOINT_STEPS = 2
calls, trainable = 0, Network.trainable_scores
def killed(self, *args):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return trainable(self, *args)
Network.trainable_scores = killed
model = encoder({tiny!r}, checkpoints={folder!r}, **{settings!r})
model.finetune(*colour_work(*{work!r}), held_out=colour_work(*{held!r}))
"""


def killed_at(call, tiny_model, folder, settings):
    import torch

    code = KILLED.format(
        here=str(Path(__file__).parent), call=call, tiny=tiny_model, folder=str(folder),
        settings=settings, work=WORK, held=HELD,
    )  # fmt: skip
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def finetuned(tiny_model, monkeypatch, **settings):
    """The weights, the log, and how many batches were read."""
    calls, trainable = [], Network.trainable_scores

    def counted(self, *args):
        calls.append(1)
        return trainable(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "trainable_scores", counted)
        patch.setattr(trainer, "CHECKPOINT_STEPS", 2)
        model = encoder(tiny_model, **settings)
        log = model.finetune(*colour_work(*WORK), held_out=colour_work(*HELD))
    return model._network().model.state_dict(), log, len(calls)


@pytest.mark.parametrize(
    ("more", "call", "left"),
    [
        ({"average": "ema"}, 10, 10),  # in the second epoch: its steps 7 and 8 are kept
        ({"tune": "adalora", "rank": 2, "average": "epochs"}, 7, 12),  # as it begins
        ({"tune": "prefix", "rank": 3, "average": "ema"}, 10, 10),
    ],
    ids=["full", "adalora", "prefix"],
)
def test_a_kill_changes_nothing(tiny_model, tmp_path, monkeypatch, more, call, left):
    settings = {**SETTINGS, **more}
    whole, log, calls = finetuned(tiny_model, monkeypatch, **settings)
    assert calls == 18
    killed_at(call, tiny_model, tmp_path, settings)
    assert len(list(tmp_path.glob("*/checkpoint-*/trainer_state.json"))) == 2
    # The newest may be half written: the one before will do, and comes to the same.
    parts, other, calls = finetuned(tiny_model, monkeypatch, checkpoints=str(tmp_path), **settings)
    assert calls == left
    assert (other.steps, other.kept_epoch) == (log.steps, log.kept_epoch) == (18, log.kept_epoch)
    np.testing.assert_allclose(other.losses, log.losses, rtol=1e-4)
    np.testing.assert_allclose(other.held_out, log.held_out)
    worst = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    assert worst < 1e-5
    assert not any(tmp_path.iterdir())  # done: nothing to go on from


def test_half_a_checkpoint_is_passed_over_and_other_work_is_not_gone_on_from(
    tiny_model, tmp_path, monkeypatch
):
    killed_at(10, tiny_model, tmp_path, SETTINGS)
    newest = max(tmp_path.glob("*/checkpoint-*"), key=lambda path: int(path.name[11:]))
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    for other in ({"learning_rate": 1e-3}, {"seed": 1}):
        _, _, calls = finetuned(
            tiny_model, monkeypatch, checkpoints=str(tmp_path), **SETTINGS, **other
        )  # fmt: skip
        assert calls == 18
    _, log, calls = finetuned(tiny_model, monkeypatch, checkpoints=str(tmp_path), **SETTINGS)
    assert calls == 12  # from the end of the first epoch
    assert log.steps == 18
    assert not any(tmp_path.iterdir())
